import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from divdr.data import check_datasets, register_segmentation_folder
from divdr.errors import DataError


@pytest.fixture
def folders(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(images / f"{name}.jpg")
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(labels / f"{name}.png")
    return images, labels


def register(name, images, labels, **options):
    options = {"classes": ["x", "y"], "image_ext": "jpg", **options}
    register_segmentation_folder(name, str(images), str(labels), **options)


def test_folder_becomes_a_data_set(folders):
    register("folder_ok", *folders)
    dicts = DatasetCatalog.get("folder_ok")
    assert [d["file_name"][-5:] for d in dicts] == ["a.jpg", "b.jpg"]
    assert [d["sem_seg_file_name"][-5:] for d in dicts] == ["a.png", "b.png"]
    metadata = MetadataCatalog.get("folder_ok")
    assert metadata.stuff_classes == ["x", "y"]
    assert metadata.evaluator_type == "sem_seg"
    check_datasets(["folder_ok"])


def test_missing_folder_label_or_images_are_named(folders):
    images, labels = folders
    with pytest.raises(DataError, match=r"expects its labels in .*nowhere"):
        register("folder_1", images, labels / "nowhere")
    (labels / "b.png").unlink()
    with pytest.raises(DataError, match=r"image b\.jpg .* has no label"):
        register("folder_2", images, labels)
    with pytest.raises(DataError, match=r"no \.tif images"):
        register("folder_3", images, labels, image_ext="tif")


def test_check_names_data_set_folder_and_content(tmp_path):
    with pytest.raises(DataError, match="'nothing_like_it' is not registered"):
        check_datasets(["nothing_like_it"])
    MetadataCatalog.get("gone").set(image_dir=str(tmp_path / "gone"), evaluator_type="sem_seg")
    DatasetCatalog.register("gone", list)
    with pytest.raises(DataError, match=r"'gone' expects its images in .*\$DETECTRON2_DATASETS"):
        check_datasets(["gone"])
