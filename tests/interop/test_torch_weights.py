"""Imported weights: golden logits, agreement with PyTorch if it is installed, and files that do not match."""

import functools
import json
import os
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torchvision_files
from safetensors.numpy import save_file

from rmn_jax.errors import UserError
from rmn_jax.interop import load_torch_weights
from rmn_jax.interop.torch_weights import classes_in_file, to_torchvision
from rmn_jax.models import RMN, create_backbone, vgg

NAMES = torchvision_files.NAMES
# Those that rmn_jax/bench/torch_networks.py has.
IN_TORCH = ("resnet18", "resnet34", "resnet50", "resnet101", "vgg16_bn", "efficientnet_b0")
CLASSES = 10
VGG_WIDTH = 64  # width of the linear layers, instead of 4096, to keep the files small

# Logits of PyTorch 2.13 on CPU (rmn_jax/bench/torch_networks.py, for the others torchvision 0.28), for the weights and
# the two 64x64 images of torchvision_files.py.
GOLDEN = {
    "resnet18": [
        [-41.5603, -0.0643884, -91.2064, 48.4198, 89.5106, 64.4908, 13.5549, -55.1878, -31.8588, -10.0443],
        [-53.678, 9.98875, -85.7438, 38.2127, 94.5251, 56.2308, 15.2293, -53.7155, -29.42, -4.2362],
    ],
    "resnet34": [
        [-508.993, -163.672, -1295.38, 514.179, 847.756, 448.053, 186.378, -482.661, 60.6147, -364.434],
        [-489.471, -214.81, -1225.67, 516.129, 813.374, 443.716, 206.419, -383.518, 128.055, -337.951],
    ],
    "resnet50": [
        [-2122.24, -528.405, -2135.88, 35.8713, 2329.82, -68.4773, 114.184, 856.351, -918.621, -235.946],
        [-2034.87, -540.179, -2285.97, -142.027, 2323.13, -8.31269, 263.013, 893.709, -872.727, -264.899],
    ],
    "resnet101": [
        [-2293030, -967929, -1701780, -557723, 2292400, 489631, 1202630, 829177, -863989, 196661],
        [-2330030, -948671, -1732620, -588411, 2366790, 514003, 1240170, 833604, -884151, 219041],
    ],
    "vgg16_bn": [
        [-8.0054, -1.1815, 0.35178, -5.42303, -0.105184, 6.17904, -1.2203, -1.83889, 2.78392, 4.59435],
        [-8.54969, -1.20639, 0.864759, -4.64297, -0.506588, 6.39138, -2.5315, -2.28003, 1.83591, 3.92442],
    ],
    "mobilenet_v2": [
        [-3.99732, -1.83826, -2.36421, -0.441996, 1.62892, 1.67095, -1.06014, -5.83146, 0.173117, -0.471492],
        [-2.37102, -1.45457, -2.42895, 1.44756, 0.215164, 0.607184, -0.541118, -5.77525, -0.576461, 0.0448702],
    ],
    "convnext_tiny": [
        [-1.42125, -1.31297, -1.17471, -0.0920578, 1.37148, 1.67929, -0.184231, -0.111857, 2.24504, -1.73104],
        [-0.738367, -2.67311, -1.59816, -0.279667, 1.41808, 0.760659, -0.930472, 1.08199, 1.9232, -2.60431],
    ],
    "efficientnet_b0": [
        [-0.0556217, -0.205683, -0.0929264, -0.196681, -0.0645717,
         0.131773, 0.179502, -0.299149, 0.164569, 0.0672076],
        [-0.0532952, -0.206535, -0.0932177, -0.196066, -0.0629223,
         0.132279, 0.179625, -0.295412, 0.164256, 0.0666606],
    ],
}  # fmt: skip


def network(name, num_classes=CLASSES, **settings):
    """The network in torchvision's shape (as for 224 pixels), with a narrow head for VGG."""
    backbone = create_backbone(name, num_classes, 224)
    if name == "vgg16_bn":
        backbone = vgg.vgg(vgg.BLOCKS, num_classes, dropped_pools=0, grid=7, width=VGG_WIDTH)
    return RMN(backbone, 4, **{"routed": False, **settings})


def empty_variables(name, **settings):
    """Variables that are -1 everywhere. A leaf that is still -1 was not loaded."""
    model = network(name, **settings)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), keys=jax.random.split(jax.random.key(0), 1))
    )
    return jax.tree.map(lambda leaf: np.full(leaf.shape, -1, np.float32), shapes)


@functools.cache
def arrays_of(name):
    return torchvision_files.fill(torchvision_files.shapes_of(name, CLASSES, VGG_WIDTH))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A function from a backbone's name to the path of its file, which is written once."""
    folder = tmp_path_factory.mktemp("weights")

    @functools.cache
    def path(name):
        save_file(arrays_of(name), folder / f"{name}.safetensors")
        return folder / f"{name}.safetensors"

    return path


@functools.cache
def forward(name):
    return jax.jit(lambda variables, images: network(name).apply(variables, images).logits)


def assert_close(ours, theirs):
    assert np.max(np.abs(ours - theirs)) <= 1e-4 * np.max(np.abs(theirs))


@pytest.mark.parametrize("name", NAMES)
def test_golden_logits(name, files):
    variables, report = load_torch_weights(files(name), name, empty_variables(name))
    assert len(report.loaded) == sum(not key.endswith("num_batches_tracked") for key in arrays_of(name))
    assert report.naming == "torchvision"
    assert (report.missing, report.unexpected, report.misshaped, report.fresh) == ((), (), (), ())
    assert_close(forward(name)(variables, torchvision_files.images(2, 64)), np.asarray(GOLDEN[name]))


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 64) for name in NAMES), ("resnet18", 224), ("efficientnet_b0", 224)]
)
def test_logits_equal_those_of_pytorch(name, size, files):
    pytest.importorskip("torch", reason="PyTorch is not installed; see the test of the golden logits")
    from rmn_jax.bench import torch_networks

    images = torchvision_files.images(3, size)[1:]
    variables, _ = load_torch_weights(files(name), name, empty_variables(name))
    assert_close(forward(name)(variables, images), torch_networks.logits(name, arrays_of(name), images, VGG_WIDTH))


# Digests of the names and shapes in torchvision 0.28, and its numbers of parameters, at 1000 classes.
TORCHVISION = {
    "resnet18": (3501249303, 11_689_512),
    "resnet34": (2960900726, 21_797_672),
    "resnet50": (3021298538, 25_557_032),
    "resnet101": (3407425115, 44_549_160),
    "vgg16_bn": (3169581159, 138_365_992),
    "mobilenet_v2": (3563569232, 3_504_872),
    "efficientnet_b0": (2321614264, 5_288_548),
    "convnext_tiny": (4289081892, 28_589_128),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_has_the_names_and_shapes_of_torchvision(name):
    shapes = torchvision_files.shapes_of(name, 1000)
    count = sum(int(np.prod(shape)) for key, shape in shapes.items() if "running" not in key and shape)
    assert (torchvision_files.digest(shapes), count) == TORCHVISION[name]


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_those_of_the_installed_torchvision(name):
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed; see the test above")
    model = getattr(torchvision.models, name)()
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == torchvision_files.shapes_of(
        name, 1000
    )


def as_timm(name, arrays):
    """The same weights with timm's names, by rules that are independent of the package."""
    if name == "vgg16_bn":
        rules = [
            (r"classifier\.0", "pre_logits.fc1"),
            (r"classifier\.3", "pre_logits.fc2"),
            (r"classifier\.6", "head.fc"),
        ]
    elif name == "efficientnet_b0":
        rules = [
            (r"^features\.0\.0", "conv_stem"), (r"^features\.0\.1", "bn1"),
            (r"^features\.8\.0", "conv_head"), (r"^features\.8\.1", "bn2"), (r"^classifier\.1", "classifier"),
            (r"^features\.1\.0\.block\.0\.0", "blocks.0.0.conv_dw"),
            (r"^features\.1\.0\.block\.0\.1", "blocks.0.0.bn1"),
            (r"^features\.1\.0\.block\.1", "blocks.0.0.se"),
            (r"^features\.1\.0\.block\.2\.0", "blocks.0.0.conv_pw"),
            (r"^features\.1\.0\.block\.2\.1", "blocks.0.0.bn2"),
            (r"block\.0\.0", "conv_pw"), (r"block\.0\.1", "bn1"), (r"block\.1\.0", "conv_dw"),
            (r"block\.1\.1", "bn2"),
            (r"block\.2\.", "se."), (r"block\.3\.0", "conv_pwl"), (r"block\.3\.1", "bn3"),
            (r"se\.fc1", "se.conv_reduce"), (r"se\.fc2", "se.conv_expand"),
        ]  # fmt: skip
    elif name == "mobilenet_v2":
        return as_timm_mobilenet(arrays)
    elif name == "convnext_tiny":
        return as_timm_convnext(arrays)
    else:
        rules = []
    renamed = {}
    for key, array in arrays.items():
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        if match := re.match(r"features\.(\d)\.(.*)", key) if name == "efficientnet_b0" else None:
            key = f"blocks.{int(match[1]) - 1}.{match[2]}"
        if key == "pre_logits.fc1.weight":
            array = array.reshape(VGG_WIDTH, 512, 7, 7)
        if key == "pre_logits.fc2.weight":
            array = array.reshape(VGG_WIDTH, VGG_WIDTH, 1, 1)
        renamed[key] = array
    return renamed


def as_timm_mobilenet(arrays):
    # The number of a block in torchvision -> its run and place there, as in timm.
    places = [(run, j) for run, depth in enumerate((1, 2, 3, 4, 3, 3, 1)) for j in range(depth)]
    layers = {
        True: ["conv_dw", "bn1", "conv_pw", "bn2"],
        False: ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"],
    }
    positions = {True: ["0.0", "0.1", "1", "2"], False: ["0.0", "0.1", "1.0", "1.1", "2", "3"]}
    renamed = {}
    for key, array in arrays.items():
        match = re.match(r"features\.(\d+)\.(?:conv\.)?(.*)\.(\w+)$", key)
        if match is None:
            name = f"classifier.{key.rpartition('.')[2]}"
        elif match[1] in ("0", "18"):
            name = f"{(('conv_stem', 'bn1') if match[1] == '0' else ('conv_head', 'bn2'))[int(match[2])]}.{match[3]}"
        else:
            run, j = places[int(match[1]) - 1]
            layer = dict(zip(positions[run == 0], layers[run == 0], strict=True))[match[2]]
            name = f"blocks.{run}.{j}.{layer}.{match[3]}"
        renamed[name] = array
    return renamed


def as_timm_convnext(arrays):
    rules = [
        (r"^features\.0", "stem"), (r"^classifier\.0", "head.norm"), (r"^classifier\.2", "head.fc"),
        (r"block\.0", "conv_dw"), (r"block\.2", "norm"), (r"block\.3", "mlp.fc1"), (r"block\.5", "mlp.fc2"),
        (r"layer_scale", "gamma"),
    ]  # fmt: skip
    renamed = {}
    for key, array in arrays.items():
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        if match := re.match(r"features\.(\d)\.(.*)", key):
            number = int(match[1])
            part = f"stages.{number // 2}"
            key = f"{part}.downsample.{match[2]}" if number % 2 == 0 else f"{part}.blocks.{match[2]}"
        renamed[key] = array.reshape(-1) if key.endswith("gamma") else array
    return renamed


@pytest.mark.parametrize("name", ["vgg16_bn", "efficientnet_b0", "mobilenet_v2", "convnext_tiny"])
def test_timm_names_give_the_same_variables(name, files, tmp_path):
    save_file(as_timm(name, arrays_of(name)), tmp_path / "timm.safetensors")
    ours, report = load_torch_weights(tmp_path / "timm.safetensors", name, empty_variables(name))
    theirs, _ = load_torch_weights(files(name), name, empty_variables(name))
    assert report.naming == "timm"
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def digest(tree):
    return [zlib.crc32(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]


def save_changed(path, change):
    arrays = dict(arrays_of("resnet18"))
    change(arrays)
    save_file(arrays, path)
    return path


def test_a_wrong_file_is_refused_and_changes_nothing(files, tmp_path):
    path = tmp_path / "changed.safetensors"
    variables = empty_variables("resnet18")
    before = digest(variables)

    def refused(file, message, backbone="resnet18"):
        with pytest.raises(UserError, match=message) as caught:
            load_torch_weights(file, backbone, variables)
        assert "\n" not in str(caught.value)
        assert digest(variables) == before

    refused(save_changed(path, lambda a: a.pop("layer2.0.bn1.bias")), r"1 missing \(layer2\.0\.bn1\.bias\)")
    refused(save_changed(path, lambda a: a.update(extra=np.zeros(2))), r"1 unexpected \(extra\)")
    misshaped = np.zeros((64, 3, 3, 3), np.float32)
    refused(
        save_changed(path, lambda a: a.update({"conv1.weight": misshaped})),
        r"conv1\.weight: \(64, 3, 3, 3\), the network needs \(64, 3, 7, 7\)",
    )
    broken = np.full((10,), np.nan, np.float32)
    refused(save_changed(path, lambda a: a.update({"fc.bias": broken})), r"not finite, in fc\.bias")
    refused(files("resnet50"), r"missing|misshaped")
    refused(files("vgg16_bn"), "no tensor of resnet18")
    refused(tmp_path / "absent.safetensors", "no such file")
    path.write_bytes(b"\x80\x04 a pickle")
    refused(path, "not a readable safetensors file")
    refused(files("resnet18"), "no weights can be imported for 'resnet8'", backbone="resnet8")


def test_a_truncated_file_is_refused(files, tmp_path):
    (tmp_path / "truncated").write_bytes(files("resnet18").read_bytes()[:-1000])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_torch_weights(tmp_path / "truncated", "resnet18", empty_variables("resnet18"))


def test_another_number_of_classes_needs_a_fresh_head(files):
    variables = empty_variables("resnet18", num_classes=7)
    with pytest.raises(UserError, match=r"fc\.weight: \(10, 512\), the network needs \(7, 512\).*--fresh_head"):
        load_torch_weights(files("resnet18"), "resnet18", variables)
    loaded, report = load_torch_weights(files("resnet18"), "resnet18", variables, fresh_head=True)
    assert report.fresh == ("params/head/fc/bias", "params/head/fc/kernel")
    assert (loaded["params"]["head"]["fc"]["kernel"] == -1).all()
    assert report.misshaped == report.missing == report.unexpected == ()
    np.testing.assert_array_equal(
        loaded["params"]["stem"]["conv1"]["kernel"][2, 1, 0],
        arrays_of("resnet18")["conv1.weight"][:, 0, 2, 1],
    )


def test_not_strict_loads_what_matches_and_reports_the_rest(tmp_path):
    path = save_changed(tmp_path / "partial.safetensors", lambda a: a.pop("layer1.0.conv1.weight"))
    variables, report = load_torch_weights(path, "resnet18", empty_variables("resnet18"), strict=False)
    assert report.missing == ("layer1.0.conv1.weight",)
    assert (variables["params"]["stage1"]["block1"]["conv1"]["kernel"] == -1).all()
    assert (variables["params"]["stage1"]["block1"]["conv2"]["kernel"] != -1).any()


def test_attention_and_gates_keep_their_values(files):
    variables, report = load_torch_weights(
        files("resnet18"), "resnet18", empty_variables("resnet18", attention="conditional", router="learned")
    )
    attention = {f"params/attention{i}/{leaf}/kernel" for i in range(1, 5) for leaf in ("squeeze", "excite")}
    gates = {f"params/gate{i}/kernel" for i in range(1, 5)}
    leaves = ("params/{}/scale", "params/{}/bias", "batch_stats/{}/mean", "batch_stats/{}/var")
    norms = {leaf.format(f"gate_norm{i}") for i in range(1, 5) for leaf in leaves}
    assert set(report.fresh) == attention | gates | norms
    assert (variables["params"]["attention1"]["squeeze"]["kernel"] == -1).all()


def test_half_precision_and_names_of_a_parallel_wrapper(tmp_path):
    halves = {f"module.{k}": a.astype(np.float16) for k, a in arrays_of("resnet18").items()}
    save_file(halves, tmp_path / "half.safetensors")
    variables, report = load_torch_weights(tmp_path / "half.safetensors", "resnet18", empty_variables("resnet18"))
    assert report.unexpected == ()
    kernel = variables["params"]["head"]["fc"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, arrays_of("resnet18")["fc.weight"].T, rtol=1e-3)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net._orig_mod.backbone."]
)
def test_what_training_scripts_put_before_names_is_removed(prefix, tmp_path):
    arrays = {f"{prefix}{name}": array for name, array in arrays_of("resnet18").items()}
    if prefix == "module.":
        arrays["n_averaged"] = np.array(3)  # of torch's averaged models
    save_file(arrays, tmp_path / "wrapped.safetensors")
    variables, report = load_torch_weights(tmp_path / "wrapped.safetensors", "resnet18", empty_variables("resnet18"))
    assert report.unexpected == report.missing == ()
    np.testing.assert_array_equal(variables["params"]["head"]["fc"]["bias"], arrays_of("resnet18")["fc.bias"])
    assert classes_in_file(tmp_path / "wrapped.safetensors", "resnet18") == CLASSES


def test_two_networks_in_one_file_are_refused(tmp_path):
    path = save_changed(tmp_path / "two.safetensors", lambda a: a.update({"module.fc.bias": a["fc.bias"]}))
    with pytest.raises(UserError, match=r"has fc\.bias twice, as \S+ and \S+; save one"):
        load_torch_weights(path, "resnet18", empty_variables("resnet18"))


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("F8_E4M3", 8), ("F8_E5M2", 8), ("F8_E8M0", 8), ("F4", 4), ("F6_E2M3", 6), ("I8", 8), ("U8", 8), ("I32", 32)]
    + [("I64", 64), ("BOOL", 8), ("C64", 64)],
)
def test_values_that_are_not_floats_are_refused_in_one_line(kind, bits, tmp_path):
    arrays = dict(arrays_of("resnet18"))
    shape = arrays.pop("conv1.weight").shape
    size = int(np.prod(shape)) * bits // 8
    save_file(arrays, tmp_path / "others.safetensors")
    content = (tmp_path / "others.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, end = json.loads(content[8 : 8 + length]), len(content) - 8 - length
    header["conv1.weight"] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :] + bytes(size))
    with pytest.raises(UserError, match=rf"conv1\.weight as {kind}; only F64, F32, F16, BF16 are read") as caught:
        load_torch_weights(path, "resnet18", empty_variables("resnet18"))
    assert "\n" not in str(caught.value)


def test_bfloat16_and_float64_are_read(tmp_path):
    for kind in (np.float64, jnp.bfloat16):
        arrays = {name: array.astype(kind) for name, array in arrays_of("resnet18").items()}
        save_file(arrays, tmp_path / "typed.safetensors")
        variables, _ = load_torch_weights(tmp_path / "typed.safetensors", "resnet18", empty_variables("resnet18"))
        kernel = variables["params"]["head"]["fc"]["kernel"]
        assert kernel.dtype == np.float32
        np.testing.assert_allclose(kernel, arrays_of("resnet18")["fc.weight"].T, rtol=1e-2)


def test_a_file_without_a_classifier_names_the_option(tmp_path):
    path = save_changed(tmp_path / "headless.safetensors", lambda a: (a.pop("fc.weight"), a.pop("fc.bias")))
    with pytest.raises(UserError, match=r"2 missing \(fc\.bias, fc\.weight\).*add --fresh_head"):
        load_torch_weights(path, "resnet18", empty_variables("resnet18"))
    _, report = load_torch_weights(path, "resnet18", empty_variables("resnet18"), fresh_head=True)
    assert report.missing == ()


def test_a_folder_or_a_pipe_in_the_file_s_place_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UserError, match="is not a file"):
            load_torch_weights(path, "resnet18", empty_variables("resnet18"))


@pytest.mark.parametrize("name", NAMES)
def test_weights_go_out_under_torchvision_s_names_bit_for_bit(name, files):
    variables, _ = load_torch_weights(files(name), name, empty_variables(name))
    out = to_torchvision(variables, name)
    arrays = arrays_of(name)
    assert out.keys() == arrays.keys()
    for key, array in arrays.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(out[key], array)
    if name == "resnet18":
        torch = pytest.importorskip("torch")
        torchvision = pytest.importorskip("torchvision")
        model = torchvision.models.resnet18(num_classes=CLASSES)
        model.load_state_dict({key: torch.from_numpy(array) for key, array in out.items()})
