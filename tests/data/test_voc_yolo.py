"""Pascal VOC's and YOLO's files, against boxes and polygons worked out by hand."""

import numpy as np
import pytest
import yaml
from detectron2.structures import BoxMode
from PIL import Image

from divdr.data.voc import image_sets, read_voc_boxes, read_voc_masks
from divdr.data.yolo import read_yolo, read_yolo_yaml
from divdr.errors import DataError

VOC = """<annotation>
  <filename>other name.jpg</filename>
  <size><width>40</width><height>30</height><depth>3</depth></size>
  <object>
    <name>dog</name>
    <difficult>1</difficult>
    <bndbox><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>15</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>
    </part>
  </object>
  <object>
    <name>cat</name>
    <bndbox>
      <xmax>40.0</xmax>
      <ymax>30</ymax>
      <xmin>1</xmin>
      <ymin>1</ymin>
    </bndbox>
  </object>
</annotation>
"""


@pytest.fixture
def voc(tmp_path):
    for folder in ("Annotations", "JPEGImages", "SegmentationClass", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation").mkdir()
    for stem in ("a", "b", "c"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"JPEGImages/{stem}.jpg")
    (tmp_path / "Annotations/a.xml").write_text(VOC)
    (tmp_path / "Annotations/b.xml").write_text("<annotation></annotation>")
    owl = VOC.replace("dog", "owl").replace("<size>", "<!--").replace("</size>", "-->")
    (tmp_path / "Annotations/c.xml").write_text(owl)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("c  1\n\n")
    (tmp_path / "ImageSets/Main/cat_train.txt").write_text("a 1\n")
    return tmp_path


def test_voc_boxes_are_those_by_hand(voc):
    assert image_sets(voc, "Main") == ["train", "val"]
    dicts, names = read_voc_boxes("voc", voc, "train")
    assert names == ["cat", "dog", "owl"], "those of the whole folder"
    assert [d["image_id"] for d in dicts] == ["a", "b"]
    first = dicts[0]
    assert first["file_name"] == str(voc / "JPEGImages/a.jpg")
    assert (first["height"], first["width"]) == (30, 40)
    # The pixels 11 to 20, counted from 1, lie between 10 and 20; 1 to 40 is the whole width.
    assert first["annotations"] == [
        {"bbox": [10, 5, 20, 15], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
        {"bbox": [0, 0, 40, 30], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0},
    ]
    assert dicts[1]["annotations"] == []
    (last,), names = read_voc_boxes("voc", voc, "val", ["owl", "cat"])
    assert names == ["owl", "cat"]
    assert (last["height"], last["width"]) == (30, 40), "of the image, where the file has none"
    assert [a["category_id"] for a in last["annotations"]] == [0, 1]
    assert len(read_voc_boxes("voc", voc)[0]) == 3


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("<xmin>11</xmin>", "<xmin>11px</xmin>", "line 7: <xmin> of 'dog' is '11px', no number"),
        ("<xmin>11</xmin>", "", "line 7: <bndbox> of 'dog' has no <xmin>"),
        ("<name>cat</name>", "", "line 11: <object> has no <name>"),
        (
            "<xmax>40.0</xmax>",
            "<xmax>-3</xmax>",
            "line 13: the box of 'cat' ends before it begins: xmin 1, ymin 1, xmax -3, ymax 30",
        ),
        ("<name>cat</name>", "<name>cat</nam>", "line 12: the file is not xml (mismatched"),
        ("annotation>", "annotations>", "line 1: <annotations> stands where <annotation> must"),
    ],
)
def test_voc_faults_name_file_and_line(voc, old, new, wanted):
    path = voc / "Annotations/a.xml"
    path.write_text(VOC.replace(old, new))
    with pytest.raises(DataError) as caught:
        read_voc_boxes("voc", voc)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{path}, {wanted}")


def test_voc_says_which_files_are_missing(voc):
    with pytest.raises(DataError, match=r"a\.xml: an object is of class 'dog', which is not among"):
        read_voc_boxes("voc", voc, "train", ["cat"])
    (voc / "JPEGImages/b.jpg").unlink()
    with pytest.raises(DataError, match="JPEGImages holds no image 'b'"):
        read_voc_boxes("voc", voc, "train")
    (voc / "ImageSets/Main/test.txt").write_text("d\ne\n")
    with pytest.raises(
        DataError, match=r"d\.xml does not exist, and ImageSets/Main/test.txt lists"
    ):
        read_voc_boxes("voc", voc, "test")
    with pytest.raises(DataError, match=r"trainval\.txt cannot be read"):
        read_voc_boxes("voc", voc, "trainval")


def test_voc_masks(voc):
    for stem in ("a", "c"):
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(voc / f"SegmentationClass/{stem}.png")
    (voc / "ImageSets/Segmentation/val.txt").write_text("c\n")
    assert read_voc_masks("voc", voc, "val") == [
        {
            "file_name": str(voc / "JPEGImages/c.jpg"),
            "sem_seg_file_name": str(voc / "SegmentationClass/c.png"),
        }
    ]
    assert len(read_voc_masks("voc", voc)) == 2
    (voc / "ImageSets/Segmentation/val.txt").write_text("c\nb\n")
    with pytest.raises(DataError, match="holds no label of image 'b', which ImageSets"):
        read_voc_masks("voc", voc, "val")


@pytest.fixture
def yolo(tmp_path):
    for part, stems in (("train", "abc"), ("val", "d")):
        for kind in ("images", "labels"):
            (tmp_path / kind / part).mkdir(parents=True)
        for stem in stems:
            Image.new("RGB", (200, 100)).save(tmp_path / f"images/{part}/{stem}.jpg")
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.2 0.4\n\n0 0.1 0.2 0.3 0.2 0.3 0.6\n")
    (tmp_path / "labels/train/b.txt").write_text("")
    (tmp_path / "labels/val/d.txt").write_text("0 0.0 0.5 0.1 0.5")
    content = {"path": ".", "train": "images/train", "val": ["images/val"], "names": ["cat", "dog"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def test_yolo_boxes_and_polygons_are_those_by_hand(yolo):
    names, sets = read_yolo_yaml(yolo / "data.yaml")
    assert names == ["cat", "dog"]
    assert [*sets] == ["train", "val"]
    first, *others = read_yolo("yolo", sets["train"], names)
    assert first["file_name"] == str(yolo / "images/train/a.jpg")
    assert (first["height"], first["width"]) == (100, 200)
    box, polygon = first["annotations"]
    # Centre (100, 50), 40 wide and 40 high.
    assert box["bbox"] == pytest.approx([80, 30, 120, 70])
    assert (box["category_id"], polygon["category_id"]) == (1, 0)
    assert "segmentation" not in box
    assert polygon["segmentation"] == [pytest.approx([20, 20, 60, 20, 60, 60])]
    assert polygon["bbox"] == pytest.approx([20, 20, 60, 60])
    assert [d["annotations"] for d in others] == [[], []], "empty and missing label files"
    (last,) = read_yolo("yolo", sets["val"], names)
    # From -10 to 10: cut at the edge.
    assert last["annotations"][0]["bbox"] == pytest.approx([0, 25, 10, 75])


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("1 0.5 0.5 0.2", "3 numbers follow the class"),
        ("1 0.5 0.5 0.2 0.4 0.9", "5 numbers follow the class"),
        ("1 0.5 0.5 x 0.4", "'x' is no number"),
        ("2 0.5 0.5 0.2 0.4", "class 2, but classes are 0 to 1"),
        ("dog 0.5 0.5 0.2 0.4", "the class 'dog' is no whole number from 0"),
        ("1 100 50 40 40", "100 is not between 0 and 1, a share of the image's size"),
        ("1 0.5 0.5 nan 0.4", "nan is not between 0 and 1, a share of the image's size"),
    ],
)
def test_yolo_faults_name_file_and_line(yolo, line, wanted):
    path = yolo / "labels/train/b.txt"
    path.write_text(f"0 0.5 0.5 0.2 0.4\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_yolo("yolo", [str(yolo / "images/train")], ["cat", "dog"])
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{path}, line 2: {wanted}")


def test_yolo_folders_lists_and_labels_elsewhere(yolo, tmp_path):
    (yolo / "some.txt").write_text("images/train/a.jpg\n./images/val/d.jpg\n")
    dicts = read_yolo("yolo", [str(yolo / "some.txt")], ["cat", "dog"])
    assert [len(d["annotations"]) for d in dicts] == [2, 1]
    assert [d["image_id"] for d in dicts] == ["images/train/a.jpg", "images/val/d.jpg"]
    (yolo / "labels/train").rename(yolo / "elsewhere")
    with pytest.raises(DataError, match=r"none of 3 images has a box; the label file of .*a\.jpg"):
        read_yolo("yolo", [str(yolo / "images/train")], ["cat", "dog"])
    where = str(yolo / "elsewhere")
    dicts = read_yolo("yolo", [str(yolo / "images/train")], ["cat", "dog"], where)
    assert [len(d["annotations"]) for d in dicts] == [2, 0, 0]
    with pytest.raises(DataError, match=r"images in .*nowhere, which does not exist"):
        read_yolo("yolo", [str(yolo / "nowhere")], ["cat"])


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"names": {0: "cat", 2: "dog"}}, "must number the classes from 0"),
        ({"names": ["cat"], "nc": 2}, "'nc' is 2, and 'names' has 1"),
        ({"names": []}, "no list of 'names'"),
        ({"names": ["cat"]}, "names no images: it has none of 'train', 'val', 'test'"),
        ([1], "holds no keys"),
    ],
)
def test_yolo_yaml_faults(tmp_path, content, wanted):
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match=wanted):
        read_yolo_yaml(path)


def test_yolo_paths_that_lead_one_folder_too_high(yolo):
    content = {"train": "../images/train", "names": {1: "dog", 0: "cat"}, "nc": 2}
    (yolo / "data.yaml").write_text(yaml.safe_dump(content))
    names, sets = read_yolo_yaml(yolo / "data.yaml")
    assert (names, sets) == (["cat", "dog"], {"train": [str(yolo / "images/train")]})
