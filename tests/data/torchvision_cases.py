"""Augmentations of two small images by torchvision, for parameters that are stored with them.

``python tests/data/torchvision_cases.py`` writes ``torchvision_cases.npz``; it needs torch and torchvision (made with
2.13 and 0.28). The tests read the file, and where torchvision is installed they also compute it anew. For an array
named ``X_out`` there is one with the parameters of each case, ``X_given``.
"""

import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_name("torchvision_cases.npz")
HEIGHT, WIDTH = 20, 16


def images():
    """uint8 [2, 20, 16, 3]: smooth colours, and noise with a flat corner in one channel of few values."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [127 + 100 * np.sin(0.5 * x + 0.2 * y), 40 + 9 * y + 2 * x, 200 - 50 * np.cos(0.7 * y - 0.4 * x)]
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3))
    noise[:8, :8] = (250, 10, 90)
    noise[..., 2] = 90 + noise[..., 2] % 4
    return np.stack([np.stack(waves, -1), noise]).clip(0, 255).astype(np.uint8)


def compute():
    """Everything in the file, by torchvision: name -> array."""
    import torch
    from torchvision.transforms import InterpolationMode, autoaugment
    from torchvision.transforms import functional as F

    pictures = images()
    tensors = [torch.tensor(picture).permute(2, 0, 1).contiguous() for picture in pictures]

    def both(function):
        return np.stack([function(tensor).permute(1, 2, 0).numpy() for tensor in tensors])

    found = {"images": pictures}

    def add(name, cases):
        found[f"{name}_given"] = np.array([given for given, _ in cases], np.float64)
        found[f"{name}_out"] = np.stack([out for _, out in cases])

    spaces = {
        "randaugment": autoaugment.RandAugment()._augmentation_space(31, (HEIGHT, WIDTH)),
        "trivialaugment": autoaugment.TrivialAugmentWide()._augmentation_space(31),
    }
    operations = []
    for name, space in spaces.items():
        tables = [np.broadcast_to(np.asarray(values, np.float64), (31,)) for values, _ in space.values()]
        found[f"{name}_magnitudes"], found[f"{name}_signed"] = (
            np.stack(tables),
            [signed for _, signed in space.values()],
        )
        for at in (9, 17) if name == "randaugment" else (20, 28):
            for number, (operation, (_, signed)) in enumerate(space.items()):
                for sign in (1, -1) if signed else (1,):
                    magnitude = sign * float(tables[number][at])
                    apply = lambda t, o=operation, m=magnitude: autoaugment._apply_op(  # noqa: E731
                        t, o, m, interpolation=InterpolationMode.NEAREST, fill=None
                    )
                    operations.append(((number, magnitude), both(apply)))
    add("operation", operations)

    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)

    def jittered(tensor, order, factors):
        for i in order:
            tensor = adjust[i](tensor, factors[i])
        return tensor

    jitters = [
        ((0, 1, 2, 3), (1.3, 0.7, 1.4, 0.1)),
        ((3, 2, 1, 0), (0.6, 1.4, 0.5, -0.1)),
        ((2, 0, 3, 1), (1.1, 1.2, 0.0, 0.5)),
        ((3, 0, 1, 2), (1.0, 1.0, 1.0, -0.35)),
    ]
    add("jitter", [((*o, *f), both(lambda t, o=o, f=f: jittered(t, o, f))) for o, f in jitters])

    windows = [
        (0, 0, 20, 16, 8, 8),
        (3, 2, 13, 11, 8, 8),
        (4, 1, 9, 15, 8, 8),
        (5, 5, 6, 5, 8, 8),
        (0, 4, 19, 12, 8, 8),
    ]
    for name, mode in (("bicubic", InterpolationMode.BICUBIC), ("bilinear", InterpolationMode.BILINEAR)):
        cut = lambda t, w, mode=mode: F.resized_crop(t, *w[:4], w[4:], mode, antialias=True)  # noqa: E731
        used = windows if name == "bicubic" else windows[:1]
        add(name, [(window, both(lambda t, w=window, cut=cut: cut(t, list(w)))) for window in used])

    rectangles = [(2, 3, 7, 9), (0, 0, 19, 4)]
    add("erasing", [(r, both(lambda t, r=r: F.erase(t, *r, v=torch.tensor(0)))) for r in rectangles])
    add("cutmix", [((*given, weight), out) for given, weight, out in cutmixes(tensors)])
    return found


def cutmixes(tensors):
    """(share, row, column), the weight of the own label, and the two images, each with a rectangle of the other."""
    from unittest import mock

    import torch
    from torchvision.transforms import v2

    batch, labels = torch.stack(tensors), torch.tensor([0, 1])
    for share, row, column in ((0.3, 4, 12), (0.9, 10, 8), (0.05, 19, 0)):
        transform = v2.CutMix(alpha=1.0, num_classes=2)
        transform._dist = mock.Mock(sample=lambda *_, share=share: torch.tensor([share]))
        draws = iter([torch.tensor([column]), torch.tensor([row])])
        with mock.patch.object(torch, "randint", lambda *_, draws=draws, **__: next(draws)):
            out, targets = transform(batch, labels)
        yield (share, row, column), float(targets[0, 0]), out.permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    np.savez_compressed(FILE, **compute())
    print(FILE, FILE.stat().st_size)
