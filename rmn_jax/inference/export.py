"""A trained network as one file that needs JAX alone, and what reads it again.

The file is a zip archive:

    about.json      format, class names, image size, units, versions
    weights.npz     the variables, by path
    cpu.program     the network for CPUs, as ``jax.export`` writes it
    gpu.program     the network for NVIDIA GPUs

A program maps ``(weights, images)`` to ``{"probabilities", "logits", "units"}``. Images are uint8 [B, H, W, 3] with any
B, H and W: scaling, cropping and normalisation are inside. The weights are arguments, so both programs share them, and
XLA does not treat them as constants.

Axes: B batch, N units, S stages, H W height and width, K classes (see ``rmn_jax``).
"""

import io
import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

import rmn_jax
from rmn_jax.errors import UserError
from rmn_jax.files import write_bytes
from rmn_jax.inference.resize import fit
from rmn_jax.inference.trained import Trained
from rmn_jax.models import Outputs
from rmn_jax.training.step import example_keys

FORMAT = "rmn_jax network"
VERSION = 1
_ABOUT, _WEIGHTS = "about.json", "weights.npz"
# Name of JAX's backend -> platform of the program, and the form of its routed convolutions.
_PLATFORMS = {"cpu": ("cpu", "loop"), "gpu": ("cuda", "tiles")}
# Inputs that go through the network together. A program's shapes are fixed, so a batch is cut into such chunks and the
# rest goes one by one: nothing is padded.
_CHUNK = 32
_LARGEST = 2**14  # pixels of a side


def export_run(trained: Trained, out: str | pathlib.Path) -> int:
    """Writes a trained network as one file, whole or not at all.

    Args:
      trained: the network of a run.
      out: the file.

    Returns:
      Its size in bytes.

    Raises:
      UserError: the file cannot be written.
    """
    weights = flatten(trained.variables)
    batch, height, width = jax_export.symbolic_shape("b, h, w")
    images = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_ABOUT, json.dumps(about(trained), indent=1))
        archive.writestr(_WEIGHTS, _npz(weights))
        for backend, (platform, form) in _PLATFORMS.items():
            program = jax_export.export(jax.jit(_network(trained, form)), platforms=[platform])(shapes, images)
            archive.writestr(f"{backend}.program", program.serialize())
    write_bytes(pathlib.Path(out), file.getvalue())
    return len(file.getvalue())


def about(trained: Trained) -> dict[str, Any]:
    """What a user of the network must know, for ``about.json``."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "rmn_jax": rmn_jax.__version__,
        "jax": jax.__version__,
        "backbone": trained.config.model.backbone,
        "routed": trained.model.routed,
        "num_units": trained.model.num_units if trained.model.routed else 0,
        "data": trained.info.name,
        "class_names": list(trained.info.class_names),
        "image_shape": list(trained.info.image_shape),
        "stored_shape": list(trained.stored_shape),
        "mean": list(trained.info.mean),
        "std": list(trained.info.std),
    }


def _network(trained: Trained, form: str) -> Callable[[dict[str, jax.Array], jax.Array], dict[str, jax.Array]]:
    """The function of ``(weights, images)`` that is exported."""
    model = trained.model.clone(backend=form, dtype=jnp.float32)
    structure = jax.tree.structure(trained.variables)
    names = list(flatten(trained.variables))
    height, width, _ = trained.stored_shape

    def chunk(variables, images: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = cast(Outputs, model.apply(variables, trained.preprocess.evaluate(images), keys=keys))
        return outputs.logits, outputs.assignment.T

    def network(weights: dict[str, jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        variables = jax.tree.unflatten(structure, [weights[name] for name in names])
        batch, more = images.shape[0], _CHUNK - 1
        keys = example_keys(jax.random.key(0), jnp.arange(batch + more))
        # Padded by _CHUNK - 1 rows, so that no slice of a chunk passes the end; the padding is not computed.
        rows = jnp.pad(fit(images, height, width), ((0, more), (0, 0), (0, 0), (0, 0)))
        shapes = jax.eval_shape(chunk, variables, rows[:1], keys[:1])
        found = tuple(jnp.zeros((batch + more, shape.shape[1]), shape.dtype) for shape in shapes)

        def through(size: int, first, count, found):
            def one(number, found):
                start = first + number * size
                parts = (jax.lax.dynamic_slice_in_dim(array, start, size) for array in (rows, keys))
                results = chunk(variables, *parts)
                return jax.tree.map(
                    lambda all, part: jax.lax.dynamic_update_slice_in_dim(all, part, start, 0), found, results
                )

            return jax.lax.fori_loop(0, count, one, found)

        count = jnp.asarray(batch, jnp.int32)
        full = count // _CHUNK
        found = through(_CHUNK, 0, full, found)
        logits, assignment = (array[:batch] for array in through(1, full * _CHUNK, count - full * _CHUNK, found))
        return {"probabilities": jax.nn.softmax(logits), "logits": logits, "units": assignment.T}

    return network


def flatten(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """``{"params/stage1/block1/conv1/kernel": array}``, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **cast(Any, arrays))
    return file.getvalue()


class Exported(NamedTuple):
    """An exported network.

    Attributes:
      about: the content of ``about.json``, see ``about``.
      call: uint8 images [B, H, W, 3] -> ``{"probabilities": [B, K], "logits": [B, K], "units": [S, B]}``.
    """

    about: dict[str, Any]
    call: Callable[[Any], dict[str, jax.Array]]


def load_exported(path: str | pathlib.Path) -> Exported:
    """Reads an exported network.

    Raises:
      UserError: no such file, not an exported network, one of a newer release, or none for this platform.
    """
    backend = jax.default_backend()
    try:
        with zipfile.ZipFile(path) as archive:
            known = _checked(json.loads(archive.read(_ABOUT)), path)
            if f"{backend}.program" not in archive.namelist():
                raise UserError(f"{path} has no program for {backend}; run it with JAX_PLATFORMS=cpu.")
            with np.load(io.BytesIO(archive.read(_WEIGHTS)), allow_pickle=False) as arrays:
                weights = {name: jnp.asarray(arrays[name]) for name in arrays.files}
            program = jax_export.deserialize(bytearray(archive.read(f"{backend}.program")))
            _check_fit(program, known, weights, path)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except UserError:
        raise
    except Exception as error:  # zip, JSON, npz and flatbuffers raise many kinds for a foreign or damaged file
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{path} is not a network that this release can read ({reason[0] if reason else type(error).__name__}); "
            "`rmn export` writes one."
        ) from None
    run = jax.jit(program.call)
    return Exported(known, lambda images: run(weights, images))


def _checked(known: Any, path: str | pathlib.Path) -> dict[str, Any]:
    if not isinstance(known, dict) or known.get("format") != FORMAT:
        raise UserError(f"{path} is not an exported network; `rmn export` writes one.")
    if known.get("version") != VERSION:
        raise UserError(f"{path} is of format {known.get('version')}, this release reads {VERSION}; update rmn_jax.")
    names, shape = known.get("class_names"), known.get("stored_shape")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path} has no list of class names; export it again.")
    sizes = shape if isinstance(shape, list) else []
    if len(sizes) != 3 or sizes[2] != 3 or not all(type(size) is int and 0 < size <= _LARGEST for size in sizes):
        raise UserError(f"{path} gives {str(shape)[:60]} as the shape of an image; export it again.")
    return known


def _check_fit(program: jax_export.Exported, known: dict[str, Any], weights: dict[str, Any], path) -> None:
    """Raises UserError if the parts of a file are of different networks."""
    logits = program.out_avals[0]  # the results in the order of their names
    if logits.shape[-1] != len(known["class_names"]):
        raise UserError(
            f"{path} has {len(known['class_names'])} class names, but its network has {logits.shape[-1]} classes; "
            "export it again."
        )
    wanted = [(aval.shape, aval.dtype) for aval in program.in_avals[:-1]]  # the last are the images
    found = [(array.shape, array.dtype) for _, array in sorted(weights.items())]
    if wanted != found:
        raise UserError(f"{path} holds weights of another network than its program; export it again.")
