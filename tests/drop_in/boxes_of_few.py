"""A data set of a few classes out of another one."""

from contextlib import contextmanager

from detectron2.data import DatasetCatalog, MetadataCatalog


@contextmanager
def register_few_classes(source, classes, name="few_classes"):
    """Name of a data set of the source's images with the annotations of these classes alone."""
    known = MetadataCatalog.get(source).thing_classes
    numbers = {known.index(c): number for number, c in enumerate(classes)}
    records = []
    for record in DatasetCatalog.get(source):
        kept = [
            {**a, "category_id": numbers[a["category_id"]]}
            for a in record["annotations"]
            if a["category_id"] in numbers
        ]
        records.append({**record, "annotations": kept})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=list(classes), evaluator_type="coco")
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
