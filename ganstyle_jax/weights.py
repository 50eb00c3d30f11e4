"""Weights of feature networks: where they are published, how they are read, and where they are kept.

    network, params = load("vgg19")                        # from the home folder, after `ganstyle weights fetch vgg19`
    network, params = load("vgg19-dcbb9e9d.pth")           # a file, in any layout in which publishers give weights out

A layout is recognised by the names and shapes in the file, never by the file's name, and nothing that a file contains
is executed. What is fetched or imported is converted to .safetensors in `home()`, beside it a record of its sums.
"""

import dataclasses
import itertools
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganstyle_jax import download, inception, torch_files, vgg
from ganstyle_jax.files import UserError, atomic_path, cache_dir
from ganstyle_jax.inception import InceptionV3
from ganstyle_jax.vgg import FIRES, VGG, VGG16, VGG19, Params, SqueezeNet

Network = vgg.Network | InceptionV3
COMPACT = Path(__file__).with_name("compact.safetensors")  # see experiments/distill_vgg.py


@dataclasses.dataclass(frozen=True)
class Published:
    """A file of weights that somebody publishes."""

    network: Network
    file: str  # its name
    size: int  # bytes
    digest: str  # "sha256:" or "md5:" and the sum in hexadecimal, or as much of it as is known
    licence: str
    about: str
    addresses: tuple[str, ...]  # all of the same bytes

    def is_file_of(self, digests: Mapping[str, str]) -> bool:
        """Whether these are the sums of this file; by algorithm."""
        algorithm, _, digits = self.digest.partition(":")
        return digests[algorithm].startswith(digits)


# torchvision states the first eight digits in the files' names, the others are the same in several independent records;
# Keras states MD5 sums. Where less than a SHA-256 sum is known, the whole of it is recorded when the file first comes.
_PYTORCH = ("https://download.pytorch.org/models/", "https://s3.amazonaws.com/pytorch/models/")
_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/"
_KERAS_GITHUB = "https://github.com/fchollet/deep-learning-models/releases/download/v0.1/"
_GITHUB = "https://raw.githubusercontent.com/"
_NOTOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"
PUBLISHED = {
    "vgg19": Published(
        network=VGG19,
        file="vgg19-dcbb9e9d.pth",
        size=574_673_361,
        digest="sha256:dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        licence="BSD-3-Clause",
        about="VGG-19 of torchvision",
        addresses=tuple(f"{place}vgg19-dcbb9e9d.pth" for place in _PYTORCH),
    ),
    "vgg16": Published(
        network=VGG16,
        file="vgg16-397923af.pth",
        size=553_433_881,
        digest="sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        licence="BSD-3-Clause",
        about="VGG-16 of torchvision",
        addresses=tuple(f"{place}vgg16-397923af.pth" for place in _PYTORCH),
    ),
    "vgg19-caffe": Published(
        network=VGG19,
        file=f"vgg19_{_NOTOP}",
        size=80_134_624,
        digest="md5:253f8cb515780f3b799900260a226db6",
        licence="CC BY 4.0",
        about="the authors' own VGG-19, which Gatys et al. used, as Keras has it",
        addresses=(f"{_KERAS}vgg19/vgg19_{_NOTOP}", f"{_KERAS_GITHUB}vgg19_{_NOTOP}"),
    ),
    "vgg16-caffe": Published(
        network=VGG16,
        file=f"vgg16_{_NOTOP}",
        size=58_889_256,
        digest="md5:6d6bbae143d832006294945121d1f1fc",
        licence="CC BY 4.0",
        about="the authors' own VGG-16, as Keras has it",
        addresses=(f"{_KERAS}vgg16/vgg16_{_NOTOP}", f"{_KERAS_GITHUB}vgg16_{_NOTOP}"),
    ),
    "vgg19-normalised": Published(
        network=dataclasses.replace(VGG19, padding="reflect", ceil_mode=True),
        file="vgg_normalised.pth",
        size=80_102_481,
        digest="sha256:804ca2835ecf7539f0cd2a7ac3c18ce81e6f8468969ae7117ac0c148d286bb4a",
        licence="MIT, after VGG (CC BY 4.0)",
        about="VGG-19 with features of about the same size everywhere, the encoder of AdaIN",
        addresses=(
            "https://github.com/naoto0804/pytorch-AdaIN/releases/download/v0.0.0/vgg_normalised.pth",
            "https://huggingface.co/spaces/vkganesan/AdaIN/resolve/main/vgg_normalised.pth",
        ),
    ),
    "vgg19-distilled": Published(
        network=VGG(((16, 16), (32, 32), (64,) * 4, (128,) * 4, (128,)), padding="reflect"),
        file="5SE.pth",
        size=3_862_288,
        digest="sha256:9417c34d0d8d621bc6af78be745f1b8d30f5f210efa01e50655c60eb3770816b",
        licence="MIT, after VGG (CC BY 4.0)",
        about="VGG-19 to relu5_1 with a sixteenth of its weights (Wang et al. 2020, arXiv:2003.08436)",
        addresses=(
            f"{_GITHUB}MingSun-Tse/Collaborative-Distillation/4a269dc90020721ef9b279b2926c62f5bcd6d209/"
            "trained_models/wct_se_16x_new/20191109-211322_E20.pth",
        ),
    ),
    "squeezenet": Published(
        network=SqueezeNet(),
        file="squeezenet1_1-b8a52dc0.pth",
        size=4_958_839,
        digest="sha256:b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        licence="BSD-3-Clause",
        about="SqueezeNet 1.1 of torchvision",
        addresses=(f"{_PYTORCH[0]}squeezenet1_1-b8a52dc0.pth",),
    ),
    "squeezenet-keras": Published(
        network=SqueezeNet(ceil_mode=False),
        file=f"squeezenet_{_NOTOP}",
        size=3_002_560,
        digest="sha256:17154246284f555591549ac2c83e127abfbf4307dc4b0060fdaa2931d0fa38da",
        licence="MIT",
        about="SqueezeNet 1.1 of keras-squeezenet",
        addresses=(
            f"{_GITHUB}DeepCognition/keras-squeezenet/a73d4339aa4d37c51a0b3ba044bed55477abec73/squeezenet_{_NOTOP}",
        ),
    ),
    "inception-fid": Published(
        network=InceptionV3(),
        file="pt_inception-2015-12-05-6726825d.pth",
        size=95_628_359,
        digest="sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        licence="Apache-2.0",
        about="InceptionV3 of TensorFlow, with which FID is measured",
        addresses=(
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
            "weights-inception-2015-12-05-6726825d.pth",
        ),
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# The home folder


def home() -> Path:
    """The folder of fetched and imported weights."""
    return cache_dir() / "weights"


def load(name_or_path: Path | str) -> tuple[Network, Params]:
    """A network and its weights, float32: "compact", a name in the home folder, or a file.

    Never downloads anything. UserError says how to get what is missing.
    """
    name = str(name_or_path)
    if name == "compact":
        return read(COMPACT)
    kept, path = home() / f"{name}.safetensors", Path(name_or_path)
    if path.name == name and kept.is_file():
        return read(kept)
    if path.is_file():
        return read(path)
    if name in PUBLISHED:
        raise UserError(f"the weights of {name} are not here yet: run `ganstyle weights fetch {name}`")
    raise UserError(f"there are no weights {name}: give a file or one of {', '.join(names())}")


def load_for_style(name_or_path: Path | str) -> tuple[vgg.Network, Params]:
    """`load`, and UserError for a network that style transfer cannot compare by."""
    network, params = load(name_or_path)
    if not isinstance(network, vgg.Network):
        raise UserError(
            f"{name_or_path} is {type(network).__name__}, which style transfer cannot compare by; "
            "take a VGG or SqueezeNet"
        )
    return network, params


def kept_names() -> list[str]:
    """What is in the home folder."""
    return sorted(path.stem for path in home().glob("*.safetensors") if not path.name.startswith("."))


def names() -> list[str]:
    """Everything that `load` knows by name, whether or not it is here."""
    return list(dict.fromkeys(["compact", *PUBLISHED, *kept_names()]))


def describe(name: str) -> str:
    """Whether weights are here, their size, licence and origin, in two lines."""
    here, published, record = name in kept_names(), PUBLISHED.get(name), Record.of(name)
    about, origin, size = "of unknown origin", "", ""
    if name == "compact":
        here, about, origin = True, "small and quick, ships with the package", str(COMPACT)
        size = f"{COMPACT.stat().st_size / 1e6:.0f} MB"
    elif here and record and not record.is_published:
        about, origin = f"imported{f', not {published.about}' if published else ''}", record.source
    elif published:
        about, origin = f"{published.about}; {published.licence}", published.addresses[0]
        size = f"{published.size / 1e6:.0f} MB"
    return f"{name:17} {'here' if here else '-':5} {size:>6}  {about}\n{'':32}{origin}"


def fetch(name: str) -> Path:
    """Downloads published weights and imports them; does nothing where they are here and sound."""
    if name not in PUBLISHED:
        raise UserError(f"nothing is published under the name {name}; there are {', '.join(PUBLISHED)}")
    published, kept, record = PUBLISHED[name], home() / f"{name}.safetensors", Record.of(name)
    if kept.is_file() and record and record.is_published and fault(name) is None:
        return kept
    path = home() / published.file

    def check(file: Path) -> str | None:
        sums = download.digests(file)
        return None if _is_published(name, sums) else f"gives another file, of SHA-256 sum {sums['sha256'][:16]}..."

    try:
        address = download.fetch(published.addresses, path, check, published.size)
    except download.DownloadError as error:
        raise UserError(
            f"{name} did not come: {error}; fetch {published.addresses[0]} by hand and run "
            f"`ganstyle weights import {published.addresses[0].rsplit('/', 1)[-1]} --name {name}`"
        ) from error
    import_file(path, name, address)
    path.unlink()
    return kept


def import_file(path: Path | str, name: str | None = None, address: str | None = None) -> Path:
    """Reads weights in any known layout and keeps them, as .safetensors, in the home folder.

    name: to load them by; by default the registered name of these very bytes, if there is one, or the file's. address:
    where they are from. UserError for a file without weights, and for a registered name and another network.
    """
    path = Path(path)
    network, params = read(path)
    sums = download.digests(path)
    if name is None:
        name = next((n for n in PUBLISHED if _is_published(n, sums)), path.stem)
    if name == "compact" or not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"weights cannot be kept by the name {name!r}; give another one, of letters, digits, . - and _")
    if name in PUBLISHED and network != PUBLISHED[name].network:
        raise UserError(f"{path} holds weights of another network than {name}; import it by another name")
    kept, before = home() / f"{name}.safetensors", Record.of(name)
    published_sha256 = before.published_sha256 if before else None
    if name in PUBLISHED and _is_published(name, sums):
        published_sha256 = sums["sha256"]
    write(kept, network, params)
    record = Record(
        sha256=download.digests(kept)["sha256"],
        source=str(path.resolve()) if address is None else address,
        source_sha256=sums["sha256"],
        published_sha256=published_sha256,
    )
    with atomic_path(kept.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n")
    return kept


def fault(name: str) -> str | None:
    """What is wrong with the weights kept by that name; recomputes their sum."""
    record = Record.of(name)
    if record is None:
        return "has no record of its sum"
    if download.digests(home() / f"{name}.safetensors")["sha256"] != record.sha256:
        return "has changed since it was written"
    return None


@dataclasses.dataclass(frozen=True)
class Record:
    """What is written beside weights in the home folder; it outlives them."""

    sha256: str  # of the .safetensors file
    source: str  # address or file
    source_sha256: str
    published_sha256: str | None  # of the published file, when it first came: what comes later must be the same

    @property
    def is_published(self) -> bool:
        """Whether the weights are those published by their name."""
        return self.source_sha256 == self.published_sha256

    @staticmethod
    def of(name: str) -> "Record | None":
        try:
            return Record(**json.loads((home() / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None


def _is_published(name: str, sums: Mapping[str, str]) -> bool:
    """Whether these sums are the published ones and, if that file has been here before, the ones it had then."""
    record = Record.of(name)
    return PUBLISHED[name].is_file_of(sums) and (record is None or record.published_sha256 in (None, sums["sha256"]))


# ---------------------------------------------------------------------------------------------------------------------
# Files


def read(path: Path | str) -> tuple[Network, Params]:
    """The network that a file holds and its weights, float32. UserError where there is none."""
    path = Path(path)
    arrays, metadata = _read_arrays(path)
    try:
        if "architecture" in metadata:
            found = _own(arrays, json.loads(metadata["architecture"]))
        else:
            found = next(filter(None, (layout(arrays) for layout in LAYOUTS)), None)
        if found is not None:
            _check(*found)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is laid out like a network that is known, but {error}") from error
    if found is None:
        raise UserError(
            f"{path} holds no network that is known; it has {', '.join(list(arrays)[:4])} ...; accepted are VGG of "
            "torchvision, Keras or Caffe, without batch normalisation, the normalised and the distilled VGG-19, "
            "SqueezeNet 1.1, and the InceptionV3 of FID"
        )
    network, params = found
    return network, {layer: {k: jnp.asarray(x, jnp.float32) for k, x in of.items()} for layer, of in params.items()}


def write(path: Path | str, network: Network, params: Params, dtype: type = np.float32) -> None:
    """Writes .safetensors with the architecture in its metadata."""
    from safetensors.numpy import save_file

    arrays = {f"{layer}/{k}": np.ascontiguousarray(x, dtype) for layer, of in params.items() for k, x in of.items()}
    how = ("dtype", "remat", "platform")  # how a network is computed, not what it is
    fields = [field.name for field in dataclasses.fields(network) if field.name not in how]
    architecture = {"network": type(network).__name__, **{name: getattr(network, name) for name in fields}}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, {"architecture": json.dumps(architecture)})


def _read_arrays(path: Path) -> tuple[Mapping[str, np.ndarray], Mapping[str, str]]:
    """All arrays of a file by name, and what a .safetensors file says of them; the first bytes tell the format."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"cannot read the weights in {path}: {error.strerror}") from error
    try:
        if head.startswith(b"\x89HDF"):
            return _read_hdf5(path), {}
        if head[8:9] == b"{":
            from safetensors import safe_open

            with safe_open(path, "numpy") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        if head.startswith(b"PK"):
            with zipfile.ZipFile(path) as file:
                is_npz = any(name.endswith(".npy") for name in file.namelist())
            if is_npz:
                with np.load(path, allow_pickle=False) as file:
                    return dict(file), {}
    except Exception as error:  # every format has its own for a file that is cut off or damaged
        raise UserError(f"{path} is cut off or damaged ({error}); fetch it again") from error
    tree = torch_files.read_state_dict(path)
    try:
        return torch_files.find_state_dict(tree), {}
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    import h5py

    arrays: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return arrays


# ---------------------------------------------------------------------------------------------------------------------
# Layouts: each makes a network and its weights of a file's arrays, or None where the names are not its own
#
# A convolution is {"kernel": (h, w, in, out), "bias": (out,)}.

Arrays = Mapping[str, np.ndarray]
Convolution = dict[str, np.ndarray]
Found = tuple[Network, dict[str, Convolution]] | None
IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # RGB in [0, 1]
CAFFE_MEAN = np.array([103.939, 116.779, 123.68])  # BGR in [0, 255]
# Maps of RGB in [-1, 1].
IMAGENET_INPUT = {"kernel": np.diag(0.5 / IMAGENET_STD), "bias": (0.5 - IMAGENET_MEAN) / IMAGENET_STD}
CAFFE_INPUT = {"kernel": 127.5 * np.eye(3)[::-1], "bias": 127.5 - CAFFE_MEAN}
CAFFE_VGG19_BIAS = np.array([0.73017758, 0.06493629, 0.03428847, 0.8260386])  # the first of conv1_1


def _own(arrays: Arrays, architecture: dict[str, Any]) -> Found:
    """What `write` wrote: "conv1_1/kernel"."""
    networks = {"VGG": VGG, "SqueezeNet": SqueezeNet, "InceptionV3": InceptionV3}
    kind = architecture.pop("network", "VGG")
    if kind not in networks:
        raise ValueError(f"a {kind} is not among {', '.join(networks)}")
    if "channels" in architecture:
        architecture["channels"] = tuple(map(tuple, architecture["channels"]))
    params: dict[str, Convolution] = {}
    for name, array in arrays.items():
        layer, _, part = name.partition("/")
        params.setdefault(layer, {})[part] = array
    return networks[kind](**architecture), params


def _torch_vgg(arrays: Arrays) -> Found:
    """torchvision's "features.0.weight"; layers are numbered, and from block to block a pooling counts too.

    Caffe's weights are given out in this layout as well (jcjohnson/pytorch-vgg). They are told apart by the numbers of
    the classifier's layers or, where somebody has renumbered those, by their values.
    """
    numbers = sorted(int(m[1]) for name in arrays if (m := re.fullmatch(r"features\.(\d+)\.weight", name)))
    if not numbers or numbers[0] != 0 or arrays["features.0.weight"].shape[1:] != (3, 3, 3):
        return None
    if any(name.endswith("running_mean") for name in arrays):
        raise ValueError("it has batch normalisation, and only a VGG without is accepted")
    blocks: list[list[Convolution]] = []
    for before, number in zip([-3, *numbers], numbers, strict=False):
        if number - before not in (2, 3):
            raise ValueError(f"features.{number} does not follow features.{before} in any VGG")
        if number - before == 3:
            blocks.append([])
        blocks[-1].append(_from_torch(arrays, f"features.{number}"))
    bias = blocks[0][0]["bias"]
    is_caffe = "classifier.1.weight" in arrays or (len(bias) == 64 and np.allclose(bias[:4], CAFFE_VGG19_BIAS))
    return _make_vgg(CAFFE_INPUT if is_caffe else IMAGENET_INPUT, blocks)


def _torch_squeezenet(arrays: Arrays) -> Found:
    """torchvision's "features.3.squeeze.weight"."""
    if "features.3.squeeze.weight" not in arrays:
        return None
    params = {"input": IMAGENET_INPUT, "conv1": _from_torch(arrays, "features.0")}
    for fire, number in zip(FIRES, (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        for part in ("squeeze", "expand1x1", "expand3x3"):
            params[f"{fire}_{part}"] = _from_torch(arrays, f"features.{number}.{part}")
    return SqueezeNet(), params


def _keras_vgg(arrays: Arrays) -> Found:
    """Keras' "block1_conv1/block1_conv1_W_1:0" and "block1_conv1/block1_conv1/kernel:0"; "block1_conv1_kernel"."""
    layers = _by_layer(arrays, r"block\d_conv\d")
    if "block1_conv1" not in layers:
        return None
    blocks: list[list[Convolution]] = []
    for layer in sorted(layers):
        if layer.endswith("conv1"):
            blocks.append([])
        blocks[-1].append(_from_keras(layers[layer], layer))
    return _make_vgg(CAFFE_INPUT, blocks)


def _keras_squeezenet(arrays: Arrays) -> Found:
    """keras-squeezenet's "fire2/squeeze1x1/uniform2"."""
    layers = _by_layer(arrays, r"conv1|fire\d/(?:squeeze1x1|expand1x1|expand3x3)")
    if "fire2/squeeze1x1" not in layers:
        return None
    params = {"input": CAFFE_INPUT}
    for layer, found in layers.items():
        params[layer.replace("squeeze1x1", "squeeze").replace("/", "_")] = _from_keras(found, layer)
    return SqueezeNet(ceil_mode=False), params


def _distilled(arrays: Arrays) -> Found:
    """Collaborative-Distillation's "conv11.weight" after a 1x1 "conv0"; "conv11_aux" and such are not needed."""
    if "conv0.weight" not in arrays or "conv11.weight" not in arrays:
        return None
    blocks: list[list[Convolution]] = []
    for name in sorted(m[1] for name in arrays if (m := re.fullmatch(r"(conv\d\d)\.weight", name))):
        if name.endswith("1"):
            blocks.append([])
        blocks[-1].append(_from_torch(arrays, name))
    return _make_vgg(_unit_input(arrays, "conv0"), blocks, padding="reflect")


def _normalised(arrays: Arrays) -> Found:
    """The normalised VGG-19, convolutions in a row, the first 1x1: AdaIN's "0.weight", which pools rounding up, and
    "conv1.weight" of WCT and what followed it.
    """
    found = sorted((int(m[2]), m[1]) for name in arrays if (m := re.fullmatch(r"((?:conv)?(\d+))\.weight", name)))
    if not found or arrays[f"{found[0][1]}.weight"].shape != (3, 3, 1, 1):
        return None
    first, *others = (name for _, name in found)
    convolutions = iter([_from_torch(arrays, name) for name in others])
    blocks = [list(itertools.islice(convolutions, len(block))) for block in VGG19.channels]
    blocks = [block for block in blocks if block]
    return _make_vgg(_unit_input(arrays, first), blocks, padding="reflect", ceil_mode=first == "0")


def _torch_inception(arrays: Arrays) -> Found:
    """pytorch-fid's "Mixed_5b.branch1x1.conv.weight" and "...bn.running_var"; the normalisation is folded in.

    torchvision's own network has these names too, other weights and, for 1000 classes, another last layer.
    """
    if "Mixed_5b.branch1x1.conv.weight" not in arrays:
        return None
    parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    expected = [f"{name}.{part}" for name in inception.CONVOLUTIONS for part in parts] + ["fc.weight", "fc.bias"]
    if any(name.startswith("AuxLogits.") for name in arrays) or len(arrays.get("fc.bias", ())) == 1000:
        raise ValueError(
            "it is torchvision's own InceptionV3 of 1000 classes, whose distances are not comparable with FID; that is "
            f"measured with {PUBLISHED['inception-fid'].file}, run `ganstyle weights fetch inception-fid`"
        )
    if missing := [name for name in expected if name not in arrays]:
        raise ValueError(f"it lacks {missing[0]}")
    counters = {f"{name}.bn.num_batches_tracked" for name in inception.CONVOLUTIONS}
    if unknown := [name for name in arrays if name not in {*expected, *counters}]:
        raise ValueError(f"it has {unknown[0]} too many")
    params = {}
    for name, shape in inception.CONVOLUTIONS.items():
        kernel, *norm = (arrays[f"{name}.{part}"] for part in parts)
        if kernel.shape != (found := (shape[3], shape[2], *shape[:2])) or any(x.shape != shape[3:] for x in norm):
            shapes = ", ".join(str(x.shape) for x in (kernel, *norm))
            raise ValueError(f"{name} has the shapes {shapes}, not {found} and {shape[3:]} four times")
        params[name] = inception.fold(kernel.transpose(2, 3, 1, 0), *norm)
    return InceptionV3(), params | {"fc": {"kernel": arrays["fc.weight"].T, "bias": arrays["fc.bias"]}}


LAYOUTS = (_torch_squeezenet, _torch_vgg, _keras_squeezenet, _keras_vgg, _distilled, _normalised, _torch_inception)


def _make_vgg(colours: Convolution, blocks: list[list[Convolution]], **architecture: Any) -> Found:
    params = {"input": colours}
    for i, block in enumerate(blocks, start=1):
        for j, convolution in enumerate(block, start=1):
            params[f"conv{i}_{j}"] = convolution
    return VGG(tuple(tuple(len(c["bias"]) for c in block) for block in blocks), **architecture), params


def _from_torch(arrays: Arrays, name: str) -> Convolution:
    for part in ("weight", "bias"):
        if f"{name}.{part}" not in arrays:
            raise ValueError(f"it lacks {name}.{part}")
    kernel = arrays[f"{name}.weight"]
    if kernel.ndim != 4:
        raise ValueError(f"{name}.weight has the shape {kernel.shape}, which is not that of a convolution")
    return {"kernel": kernel.transpose(2, 3, 1, 0), "bias": arrays[f"{name}.bias"]}


def _unit_input(arrays: Arrays, name: str) -> Convolution:
    """A 1x1 convolution of RGB in [0, 1], as a map of RGB in [-1, 1]."""
    convolution = _from_torch(arrays, name)
    kernel = convolution["kernel"][0, 0]
    return {"kernel": kernel / 2, "bias": convolution["bias"] + kernel.sum(0) / 2}


def _by_layer(arrays: Arrays, pattern: str) -> dict[str, list[np.ndarray]]:
    """The arrays whose names have a layer's among their parts, by layer; without those of an optimizer."""
    found: dict[str, list[np.ndarray]] = {}
    for name, array in arrays.items():
        if (m := re.search(rf"(?:^|/)({pattern})(?=[/_])", name)) and not name.startswith("optimizer"):
            found.setdefault(m[1], []).append(array)
    return found


def _from_keras(arrays: list[np.ndarray], layer: str) -> Convolution:
    """Kernel and bias are told apart by their dimensions, since Keras has named them in many ways."""
    shapes = {array.ndim: array for array in arrays}
    if len(arrays) != 2 or shapes.keys() != {1, 4}:
        raise ValueError(f"{layer} should have a kernel and a bias, got shapes {[array.shape for array in arrays]}")
    return {"kernel": shapes[4], "bias": shapes[1]}


def _check(network: Network, params: dict[str, Convolution]) -> None:
    """ValueError unless the weights are those that the network needs, and finite."""
    expected = jax.eval_shape(network.init, jax.random.key(0))
    if missing := [layer for layer in expected if layer not in params]:
        raise ValueError(f"it lacks {missing[0]}")
    if unknown := [layer for layer in params if layer not in expected]:
        raise ValueError(f"it has a layer {unknown[0]} too many")
    for layer, convolution in expected.items():
        for part, x in convolution.items():
            if part not in params[layer]:
                raise ValueError(f"{layer} has no {part}")
            array = params[layer][part]
            if array.shape != x.shape:
                raise ValueError(f"{layer} has a {part} of shape {array.shape}, not {x.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{layer} has values that are not finite")
