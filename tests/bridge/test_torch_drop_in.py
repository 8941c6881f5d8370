"""BitGen in PyTorch as its card has it: a folder that works without our packages."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image
from transformers import AutoTokenizer

import bridge
from bridge.core.twins import twin
from bridge.formats.tokenizer import read_tokenizer
from bridge.torch.processing_bitgen import BitGenImageProcessor, BitGenProcessor
from data_pipelines.captions.tokens import encode_caption
from jaxmodels.bitgen import remember
from jaxmodels.commands.eval_images import read_images
from tests.bridge.helpers import write_run
from tests.bridge.twins import alone
from tests.contract import ARCHS, PAIRS, exact, smallest

torch.set_num_threads(1)
TEXT = "a cat on a couch"

# The card of seed 004, but for the loading of model and tokeniser, which is transformers' here,
# and the transform: torchvision's Resize and ToTensor, written out.
CARD = """
from transformers import AutoModel, AutoTokenizer
from PIL import Image
import numpy as np
model = AutoModel.from_pretrained(".", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)
def transform(image):
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255

image = Image.open("image.jpg").convert('RGB')
caption = "a cat on a couch"
image_tensor = transform(image).unsqueeze(0)
tokens = tokenizer(caption, return_tensors='pt', padding=True, truncation=True, max_length=256)
input_ids = tokens['input_ids']
with torch.no_grad():
    outputs = model(
        input_ids=input_ids,
        images=image_tensor,
        return_contrastive_features=True
    )
    embeddings = outputs['embeddings']
    text_features = outputs['contrastive_features']['text_features']
    image_features = outputs['contrastive_features']['image_features']
    similarity = (text_features @ image_features.T).item()
"""


FOLDERS = {"bitgen": 3, "bitgen_stage1": 1, "dinov2": 1}
"""Architecture → snippets in the model card of its folder."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model directory of each architecture, with a picture in it."""
    path = tmp_path_factory.mktemp("folders")
    for arch in FOLDERS:
        write_run(path / "run", {1: None}, spec=f"{arch}:smallest", vocab=arch in PAIRS)
        bridge.convert(path / "run", path / arch)
        shutil.rmtree(path / "run")
        pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
        Image.fromarray(pixels).save(path / arch / "image.jpg")
    return path


@pytest.fixture(scope="module")
def writer(folders):
    """That of a model that writes captions."""
    return folders / "bitgen"


def snippets(folder):
    """The Python of a model card that loads the folder by transformers and uses it."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return [block.replace('"PATH"', '"."') for block in blocks if "Processor" in block]


def ours(folder):
    """(the twin, our ids of the text [1, t], our pixels of the picture) of a folder."""
    module, tokenizer = bridge.torch.load(folder), read_tokenizer(folder)
    ids = torch.from_numpy(encode_caption(TEXT, tokenizer))[None].long()
    pixels = read_images((folder / "image.jpg",), module.config.image_size)
    return module, ids, torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@pytest.mark.slow
def test_the_snippets_of_the_card_and_of_the_folders(folders):
    """BitGen's card runs as it is, and each snippet of our cards; the similarity is ours."""
    blocks = {arch: snippets(folders / arch) for arch in FOLDERS}
    assert {arch: len(block) for arch, block in blocks.items()} == FOLDERS
    code = f"""
import contextlib, io, os
result = {{}}
for arch, snippets in {blocks!r}.items():
    os.chdir(arch)
    result[arch] = found = []
    if arch != "dinov2":
        names = {{"torch": torch, "SIDE": {smallest("bitgen").image_size}}}
        exec({CARD!r}, names)
        found += [list(names["embeddings"].shape), names["similarity"]]
    for snippet in snippets:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(snippet, {{}})
        found.append(out.getvalue())
    os.chdir("..")
"""
    found = alone(code, folders)
    for arch in sorted(PAIRS):
        shape, similarity, *printed = found[arch]
        assert shape == [1, len(TEXT), smallest(arch).dim]
        assert -1 <= similarity <= 1
        assert all(text.strip() for text in printed)
        at = [i for i, block in enumerate(blocks[arch]) if "contrastive_features" in block]
        module, ids, pixels = ours(folders / arch)
        with torch.no_grad():
            out = module(ids, pixels)
        expected = (out.text_features @ out.image_features.T).item()
        assert abs(float(printed[at[0]]) - expected) <= 1e-4
    assert found["dinov2"][0].startswith("tensor(")


@pytest.fixture(scope="module")
def twin_of(writer):
    """The twin of a folder in float64, our ids and our pixels."""
    module, ids, pixels = ours(writer)
    return module.double(), ids, pixels.double()


def test_the_processor_reads_as_we_do(writer, twin_of):
    """Texts with their end, padded on the right; the centre square of a picture, bit for bit."""
    _, ids, pixels = twin_of
    tokenizer = AutoTokenizer.from_pretrained(writer)
    processor = BitGenProcessor(BitGenImageProcessor(size=56), tokenizer)
    found = processor(images=Image.open(writer / "image.jpg"), text=["a", TEXT])
    assert torch.equal(found["input_ids"][1:], ids)
    assert found["attention_mask"].sum(1).tolist() == [3, ids.shape[1]]
    assert found["attention_mask"][0, :3].all()
    assert torch.equal(found["pixel_values"].double(), pixels.float().double())
    assert processor(text=TEXT, end=False)["input_ids"].shape[1] == len(TEXT)
    for picture, why in (
        (np.zeros((3, 8, 8), np.uint8), r"\[3, 8, 8\]"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
        ("image.jpg", "not a str"),
    ):
        with pytest.raises(ValueError, match=why):
            processor(images=picture)


def test_pictures_of_every_mode_are_read_as_we_read_them(tmp_path):
    """Palettes, transparency, greys of 16 bits, rotated ones, very long ones."""
    drawn = np.random.default_rng(0).integers(0, 256, (40, 30, 4), np.uint8)
    grey = Image.fromarray(drawn[..., 0].astype(np.uint16) * 257)
    turned = Image.fromarray(drawn[..., :3])
    exif = turned.getexif()
    exif[0x0112] = 6
    pictures = {
        "rgba.png": Image.fromarray(drawn),
        "palette.png": Image.fromarray(drawn[..., :3]).convert("P"),
        "grey.png": Image.fromarray(drawn[..., 0]),
        "bits16.png": grey,
        "long.png": Image.fromarray(np.tile(drawn[:2, :, :3], (1, 4, 1))),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    turned.save(tmp_path / "turned.jpg", exif=exif)
    process = BitGenImageProcessor(size=24)
    for file in sorted(tmp_path.iterdir()):
        found = process(Image.open(file))["pixel_values"][0].permute(1, 2, 0) * 255
        assert np.array_equal(found.round().to(torch.uint8), read_images((file,), 24)[0]), file


def test_generate_takes_the_likeliest_token_each_time(twin_of):
    """Those of the decoder's logits, which are proven against ours; with a prompt, without."""
    module, ids, pixels = twin_of
    for prompt in (ids[:, :0], ids[:, :3]):
        found = module.generate(pixels, input_ids=prompt, eos_token_id=None)
        assert found.shape == (1, module.config.context)
        with torch.no_grad():
            logits = module(ids, pixels, targets=found).decoder_logits
        start = prompt.shape[1]
        assert torch.equal(logits.argmax(-1)[:, start:], found[:, start:])
        assert torch.equal(found[:, :start], prompt)
        plain = module.generate(pixels, input_ids=prompt, eos_token_id=None, use_cache=False)
        assert torch.equal(found, plain)
    assert module.generate(images=pixels, num_beams=2, max_new_tokens=3).shape == (1, 3)
    assert module.generate(pixels, max_length=5, eos_token_id=None).shape == (1, 5)


def test_padding_on_either_side_changes_nothing(twin_of):
    module, ids, pixels = twin_of
    nothing, one = torch.zeros(1, 2, dtype=torch.long), torch.ones_like(ids)
    left = {
        "input_ids": torch.cat([nothing, ids], 1),
        "attention_mask": torch.cat([nothing, one], 1),
    }
    right = {
        "input_ids": torch.cat([ids, nothing], 1),
        "attention_mask": torch.cat([one, nothing], 1),
    }
    with torch.no_grad():
        plain = module(ids, pixels)
        for padded, places in ((left, slice(2, None)), (right, slice(0, -2))):
            out = module(**padded, images=pixels)
            assert (out.embeddings[:, places] - plain.embeddings).abs().max() <= 1e-8
            assert (out.text_features - plain.text_features).abs().max() <= 1e-8
    words = module.generate(pixels, input_ids=ids[:, :3], max_new_tokens=5, eos_token_id=None)
    padded = module.generate(
        pixels,
        input_ids=right["input_ids"][:, -5:] * 0 + torch.cat([ids[:, :3], nothing], 1),
        attention_mask=torch.tensor([[1, 1, 1, 0, 0]]),
        max_new_tokens=5,
        eos_token_id=None,
    )
    assert torch.equal(padded[:, 2:], words)


@pytest.mark.slow
def test_what_is_written_is_what_we_write(writer, twin_of):
    """The sums and what is read of them, in float64; forgetting restores what was before."""
    module, ids, _ = twin_of
    before = [module.memory.gram.clone(), module.memory.total.clone(), module.memory.count.clone()]
    module.write(ids)
    with torch.no_grad():
        read = module.memory(module.get_text_features(ids))
    gram, total = module.memory.gram - before[0], module.memory.total - before[1]
    said = module.recollect(input_ids=ids, max_new_tokens=2, eos_token_id=None)
    module.forget(ids)
    after = [module.memory.gram, module.memory.total, module.memory.count]
    assert max((a - b).abs().max().item() for a, b in zip(after, before, strict=True)) <= 1e-8
    assert said.shape == (1, 2)
    with jax.enable_x64(True):
        model = exact(bridge.load(writer))
        tokens = jnp.asarray(ids.numpy())
        made = nnx.jit(remember.write)(model, tokens)
        seen = nnx.jit(remember.read)(model, tokens, stats=made)
    assert np.abs(np.asarray(made.gram) - before[0].numpy() - gram.numpy()).max() <= 1e-6
    assert np.abs(np.asarray(made.total) - before[1].numpy() - total.numpy()).max() <= 1e-6
    assert np.abs(np.asarray(seen) - read.numpy()).max() <= 1e-6


@pytest.mark.parametrize("arch", [a for a in ARCHS if a in ("charlm", "bwetaf", "wigip", *PAIRS)])
def test_an_unknown_argument_is_refused(arch):
    """None and False ask for nothing: libraries pass them to every model."""
    config = smallest(arch)
    with torch.device("meta"):
        module = twin(arch).build(config).eval()
    ids = torch.zeros(1, config.context, dtype=torch.long, device="meta")
    with pytest.raises(TypeError, match="image_list"):
        module(ids, image_list=[1])
    with pytest.raises(TypeError, match="output_attentions"):
        module(ids, output_attentions=True)


@pytest.mark.parametrize("arch", sorted(PAIRS))
def test_images_that_are_none_are_refused(arch):
    config = smallest(arch)
    with torch.device("meta"):
        module = twin(arch).build(config).eval()
    ids = torch.zeros(2, 3, dtype=torch.long, device="meta")
    good = torch.zeros(2, 3, 8, 8, device="meta")
    for given, why in (
        ({"images": good, "pixel_values": good}, "two names"),
        ({"images": good.to(torch.uint8)}, "uint8"),
        ({"images": good.permute(0, 2, 3, 1)}, r"\[2, 8, 8, 3\]"),
        ({"images": good[:1]}, "1 images do not go with 2 texts"),
    ):
        with pytest.raises(ValueError, match=why):
            module(ids, **given)


def test_a_mask_that_stage_1_cannot_honour_is_refused():
    module = twin("bitgen_stage1").build(smallest("bitgen_stage1")).eval()
    ids = torch.zeros(1, 3, dtype=torch.long)
    with torch.no_grad():
        out = module(ids, attention_mask=torch.ones_like(ids), return_contrastive_features=True)
        assert out.contrastive_features == {}  # as the seed has it without images
    with pytest.raises(ValueError, match="trained to see padding"):
        module(ids, attention_mask=torch.zeros_like(ids))
