"""Real architectures with random weights, small: what Hugging Face, timm, torchvision and Keras models return."""

import warnings

import keras
import torch
from torch import nn

SHAPE = (3, 32, 32)
CLASSES = 5


def with_torchvision(build):
    """Return what a function builds that imports torchvision, whose wheel is not one for PyTorch without CUDA."""
    import importlib.util

    if importlib.util.find_spec("torchvision") is not None and not hasattr(torch.ops.torchvision, "nms"):
        # Its compiled operations do not load. Two of them are looked up when it is imported, and none is used here.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build()


_LIBRARIES: list[torch.library.Library] = []


def hugging_face_vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=32, num_labels=CLASSES)  # fmt: skip
    return ViTForImageClassification(config)


def hugging_face_convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(image_size=32, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=CLASSES)
    return ConvNextForImageClassification(config)


def timm_model(name):
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **TIMM[name])


TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "convnext_atto": {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)},
    "resnet10t": {},
}


class Auxiliary(nn.Module):
    """Inception's habit: two vectors of logits, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten())
        self.head = nn.LazyLinear(CLASSES)
        self.auxiliary = nn.LazyLinear(CLASSES)

    def forward(self, x):
        features = self.body(x)
        return self.head(features), self.auxiliary(features)


def auxiliary():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Auxiliary()
        model(torch.zeros(1, *SHAPE))
    return model


class WithFeatures(nn.Module):
    """Scores with their features: two matrices."""

    def __init__(self, kind):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7))
        self.head = nn.Linear(7, CLASSES)
        self.kind = kind

    def forward(self, x):
        features = self.body(x)
        scores = self.head(features)
        if self.kind == "tuple":
            return scores, features
        if self.kind == "features first":
            return features, scores
        return {"scores": scores, "features": features}


TORCH = {
    "hugging face vit": lambda: with_torchvision(hugging_face_vit),
    "hugging face convnext": lambda: with_torchvision(hugging_face_convnext),
    **{f"timm {name}": lambda name=name: with_torchvision(lambda: timm_model(name)) for name in TIMM},
    "auxiliary": auxiliary,
}


def keras_two_outputs():
    x = keras.Input((32, 32, 3))
    features = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, strides=2, activation="relu")(x))
    return keras.Model(x, [keras.layers.Dense(CLASSES)(features), keras.layers.Dense(CLASSES)(features)])


def keras_named_outputs():
    x = keras.Input((32, 32, 3))
    features = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, strides=2, activation="relu")(x))
    return keras.Model(x, {"logits": keras.layers.Dense(CLASSES)(features), "features": features})


KERAS = {"two outputs": keras_two_outputs, "named outputs": keras_named_outputs}
