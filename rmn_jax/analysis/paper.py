"""The figures that the paper prints for N = 8, and why some differ from the counts of its networks."""

# Millions of parameters of the plain network, RMN and RMN+CA; billions of multiply-adds of the plain network.
FIGURES = {
    ("CIFAR-100", "vgg16_bn"): (33.8, 136.7, 136.8, 0.43),
    ("CIFAR-100", "resnet18"): (11.2, 88.3, 88.4, 0.56),
    ("CIFAR-100", "resnet50"): (23.7, 183.8, 184.6, 1.31),
    ("CIFAR-100", "efficientnet_b0"): (4.2, 32.3, 32.4, 0.12),
    ("Tiny ImageNet", "vgg16_bn"): (135.0, 237.7, 237.8, 14.10),
    ("Tiny ImageNet", "resnet18"): (11.3, 89.4, 89.5, 2.25),
    ("Tiny ImageNet", "resnet50"): (23.9, 188.4, 189.1, 5.25),
    ("Tiny ImageNet", "efficientnet_b0"): (4.3, 32.4, 32.5, 0.47),
    ("ImageNet", "vgg16_bn"): (138.3, 241.0, 241.1, 15.51),
    ("ImageNet", "resnet18"): (11.7, 89.8, 89.9, 1.81),
    ("ImageNet", "resnet50"): (25.6, 190.0, 190.7, 4.11),
    ("ImageNet", "efficientnet_b0"): (5.3, 33.4, 33.5, 0.39),
}
# Billions of multiply-adds with conditional attention; printed for Tiny ImageNet only.
ATTENTION_MULTIPLY_ADDS = {"vgg16_bn": 14.11, "resnet18": 2.26, "resnet50": 5.26, "efficientnet_b0": 0.47}

_GROWTH = (
    "The paper's figures are inconsistent. Routing adds seven copies of the same stages on every benchmark. These have "
    "{here} by its figures for CIFAR-100, {there} by those for ImageNet, and {counted} when counted."
)
NOTES = {
    "vgg-weights": (
        "The paper's figures for a routed VGG-16 are, to within 0.1M, those of the kernels only, without biases and "
        "norms. On Tiny ImageNet and ImageNet these are 237.77M and 241.05M for RMN, and 237.86M and 241.13M with CA."
    ),
    "vgg-cifar": (
        _GROWTH.format(here="102.9M", there="102.7M", counted="102.8M")
        + " Its RMN without the seven copies has 34.0M, which is the count here for the plain network, not 33.8M."
    ),
    "vgg-operations": (
        "The paper's 15.51B on ImageNet counts two operations for each value of a norm and one for each bias. By the "
        "same rule it is 15.10B on Tiny ImageNet and 0.33B on CIFAR-100. The paper's 14.10B and 0.43B differ from "
        "these in one digit."
    ),
    "resnet18-cifar": _GROWTH.format(here="77.1M", there="78.1M", counted="78.2M"),
    "resnet50-cifar": _GROWTH.format(here="160.1M", there="164.4M", counted="164.5M"),
    "efficientnet-cifar": (
        "The paper gives 4.2M for the plain network. torchvision's has 4.136M with 100 classes, 0.06M less. The RMN "
        "seems to differ for the same reason."
    ),
    "norm-operations": (
        "The paper seems to count norms too: with two operations for each value, ResNet-50 has 5.25B; with one, "
        "EfficientNet-B0 has 0.47B."
    ),
}
# (backbone, benchmark, quantity) -> the variants whose difference has a note, and the key of the note.
NOTED: dict[tuple[str, str, str], tuple[tuple[str, ...], str]] = {
    ("vgg16_bn", "CIFAR-100", "parameters"): (("plain", "RMN", "RMN+CA"), "vgg-cifar"),
    ("vgg16_bn", "Tiny ImageNet", "parameters"): (("RMN", "RMN+CA"), "vgg-weights"),
    ("vgg16_bn", "ImageNet", "parameters"): (("RMN", "RMN+CA"), "vgg-weights"),
    ("vgg16_bn", "CIFAR-100", "multiply_adds"): (("plain",), "vgg-operations"),
    ("vgg16_bn", "Tiny ImageNet", "multiply_adds"): (("plain", "RMN+CA"), "vgg-operations"),
    ("resnet18", "CIFAR-100", "parameters"): (("RMN", "RMN+CA"), "resnet18-cifar"),
    ("resnet50", "CIFAR-100", "parameters"): (("RMN", "RMN+CA"), "resnet50-cifar"),
    ("resnet50", "Tiny ImageNet", "multiply_adds"): (("plain", "RMN+CA"), "norm-operations"),
    ("efficientnet_b0", "CIFAR-100", "parameters"): (("RMN",), "efficientnet-cifar"),
    ("efficientnet_b0", "Tiny ImageNet", "multiply_adds"): (("plain", "RMN+CA"), "norm-operations"),
}
