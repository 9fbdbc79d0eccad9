"""The student as a torch module: recorded, exported, quantized, adapted, in other types: always the same features."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from helpers_models import TINY, speech_like
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd import assets
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.network import fast_conv, overlap_save
from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.encoder import hubert_encoder
from s3prl_ekd.network.frames import HiddenStates
from s3prl_ekd.student.folder import load_student
from s3prl_ekd.student.heads import PredictionHeads
from s3prl_ekd.student.model import PaddedOutput, Student
from s3prl_ekd.upstream import EkdUpstream

SIZES = {key: tuple(value) if isinstance(value, list) else value for key, value in TINY.items()}
WAVLM_LARGE = {"num_buckets": 32, "max_bucket_distance": 40, "conv_layer_norm": True, "do_stable_layer_norm": True}


def batch(*samples):
    """Waveforms (B, S), zero-padded, and lengths (B,)."""
    waveforms = [speech_like(n, seed) for seed, n in enumerate(samples)]
    return pad_sequence(waveforms, batch_first=True), torch.tensor(samples)


RECORDED = batch(9000, 4321)
REPLAYED = {"same": RECORDED, "longer": batch(3000, 12001), "B=1": batch(7000), "B=3": batch(800, 5000, 5001)}


class LastState(nn.Module):
    """A student that returns one tensor, as people wrap it for export."""

    def __init__(self, student, **options):
        super().__init__()
        self.student, self.options = student, options

    def forward(self, waveforms, lengths=None):
        return self.student(waveforms, lengths, **self.options).hidden_states[-1]


class States(nn.Module):
    """An encoder that returns its states (B, F, D)."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, waveforms, lengths):
        output = self.encoder.encode(waveforms, lengths)
        return tuple(output.packing.unpack(state) for state in output.states)


class UpstreamOfTwo(nn.Module):
    """An upstream for two waveforms that returns one tensor."""

    def __init__(self, student):
        super().__init__()
        self.upstream = EkdUpstream(student)

    def forward(self, first, second):
        return self.upstream([first, second])["last_hidden_state"]


@pytest.fixture(params=[False, True], ids=["", "normalized"])
def student(request):
    return Student(StudentConfig.from_mapping({**TINY, "normalize_waveform": request.param})).eval()


@pytest.fixture
def shallow_student():
    """Of one layer, for what takes long; its conv stack's gradients are scaled."""
    return Student(StudentConfig.from_mapping({**TINY, "num_hidden_layers": 1, "feature_grad_scale": 0.1})).eval()


@torch.no_grad()
def assert_equal(found, wanted, atol=1e-5):
    """States (B, F, D); ``found`` may go on with frames of padding, which are zero."""
    frames = wanted.shape[1]
    assert found.shape[1] >= frames
    torch.testing.assert_close(found[:, :frames].to(wanted.dtype), wanted, atol=atol, rtol=0)
    assert not found[:, frames:].any()


def traced(model, inputs):
    """What torch.jit.trace makes of it, saved and loaded again."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit's own end
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of torch's own group_norm
        warnings.filterwarnings("error", category=torch.jit.TracerWarning, module="s3prl_ekd")  # a constant, it thinks
        torch.jit.save(torch.jit.trace(model, inputs, check_trace=False), file)
        file.seek(0)
        return torch.jit.load(file)


def dynamic(lengths=True):
    """For torch.export: batches and waveforms of any size."""
    size, samples = torch.export.Dim("B", min=1, max=64), torch.export.Dim("S", min=800, max=480000)
    return {"waveforms": {0: size, 1: samples}} | ({"lengths": {0: size}} if lengths else {})


def test_traced_student_holds_for_other_lengths(student):
    trace = traced(LastState(student).eval(), RECORDED)
    for inputs in REPLAYED.values():
        assert_equal(trace(*inputs), LastState(student).eval()(*inputs))


def test_traced_student_without_lengths(student):
    trace = traced(LastState(student).eval(), RECORDED[:1])
    for waveforms, _ in REPLAYED.values():
        assert_equal(trace(waveforms), LastState(student).eval()(waveforms))


def test_trace_and_eager_agree_on_random_batches(tiny_student):
    """A law: for any batch of any lengths the recorded computation is the packed one."""
    trace = traced(LastState(tiny_student).eval(), RECORDED)
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        size = int(torch.randint(1, 6, (), generator=generator))
        inputs = batch(*torch.randint(400, 8000, (size,), generator=generator).tolist())
        assert_equal(trace(*inputs), LastState(tiny_student).eval()(*inputs))


def test_traced_upstream(tiny_student):
    upstream = UpstreamOfTwo(tiny_student)
    trace = traced(upstream, (speech_like(9000), speech_like(4321, 1)))
    for first, second in [(9000, 4321), (3000, 12001), (350, 5000), (7000, 7000)]:
        inputs = speech_like(first), speech_like(second, 1)
        wanted = upstream(*inputs)
        torch.testing.assert_close(trace(*inputs), wanted, atol=1e-5, rtol=0)


LAYERS_DIFFER = {"num_attention_heads": (2, 0), "intermediate_size": (0, 9), "head_dim": 6}


@pytest.mark.parametrize(
    "variant",
    [{}, WAVLM_LARGE, LAYERS_DIFFER, WAVLM_LARGE | LAYERS_DIFFER | {"remaining_heads": ((1, 3), ())}],
    ids=["hubert", "wavlm-large", "layers differ", "wavlm-large, layers differ"],
)
def test_recorded_encoder_of_each_kind(variant):
    """Both orders of normalization, convolutions with LayerNorm, relative positions, layers that lack something."""
    states = States(hubert_encoder(EncoderConfig(**SIZES | variant)).eval())
    trace = traced(states, RECORDED)
    for inputs in REPLAYED.values():
        for found, wanted in zip(trace(*inputs), states(*inputs), strict=True):
            assert_equal(found, wanted)


def test_recorded_padded_mode(tiny_student):
    """As s3prl's distiller computes it, padding in the statistics."""
    model = LastState(tiny_student, padded=True).eval()
    trace = traced(model, RECORDED)
    for inputs in REPLAYED.values():
        assert_equal(trace(*inputs), model(*inputs))


def test_exported_student(shallow_student):
    """Dynamic batch and length; saved and loaded; the student itself, not wrapped."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(shallow_student, RECORDED, dynamic_shapes=dynamic()), file)
    file.seek(0)
    exported = torch.export.load(file).module()
    for inputs in REPLAYED.values():
        found, wanted = exported(*inputs), shallow_student(*inputs)
        assert isinstance(found, PaddedOutput)
        assert torch.equal(found.frame_lengths, wanted.frame_lengths)
        for ours, reference in zip(found.hidden_states, wanted.hidden_states, strict=True):
            assert_equal(ours, reference)


@pytest.mark.slow
def test_exported_student_without_lengths_and_of_one_shape(tiny_student):
    model = LastState(tiny_student).eval()
    exported = torch.export.export(model, RECORDED[:1], dynamic_shapes=dynamic(lengths=False)).module()
    for waveforms, _ in REPLAYED.values():
        assert_equal(exported(waveforms), model(waveforms))
    assert_equal(torch.export.export(model, RECORDED).module()(*RECORDED), model(*RECORDED))


@pytest.mark.slow
def test_exported_upstream(tiny_student):
    upstream = UpstreamOfTwo(tiny_student)
    dims = {name: {0: torch.export.Dim(name, min=401, max=480000)} for name in ("first", "second")}
    exported = torch.export.export(upstream, (speech_like(9000), speech_like(4321, 1)), dynamic_shapes=dims).module()
    for first, second in [(9000, 4321), (3000, 12001), (7000, 7000)]:
        inputs = speech_like(first), speech_like(second, 1)
        with torch.no_grad():
            torch.testing.assert_close(exported(*inputs), upstream(*inputs), atol=1e-5, rtol=0)


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    "backend",
    ["eager", pytest.param("aot_eager", marks=pytest.mark.slow), pytest.param("inductor", marks=pytest.mark.slow)],
)
def test_compiled_student(shallow_student, backend):
    """In one graph; rows and packing are those of the eager student, so that it can stand in for it; gradients too."""

    def gradients(output):
        return torch.autograd.grad(output.rows[-1].sin().sum(), list(shallow_student.parameters()))

    compiled = torch.compile(shallow_student, fullgraph=True, dynamic=True, backend=backend)
    for inputs in (RECORDED, REPLAYED["B=3"]):
        found, wanted = compiled(*inputs), shallow_student(*inputs)
        assert isinstance(found, PaddedOutput)
        assert isinstance(wanted, HiddenStates)
        assert torch.equal(found.packing.frames, wanted.packing.frames)
        for ours, reference in zip(found.rows, wanted.rows, strict=True):
            torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)
        for ours, reference in zip(gradients(found), gradients(wanted), strict=True):
            assert (ours - reference).norm() < 1e-4 * reference.norm() + 1e-6


@pytest.mark.parametrize("lengths", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["lengths", "no lengths"])
def test_onnx_with_dynamic_batch_and_length(tmp_path, lengths, shallow_student):
    import onnxruntime as runtime

    model, file = LastState(shallow_student).eval(), str(tmp_path / "student.onnx")
    inputs = RECORDED if lengths else RECORDED[:1]
    torch.onnx.export(model, inputs, file, dynamo=True, dynamic_shapes=dynamic(lengths), verbose=False)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    for replayed in REPLAYED.values():
        given = replayed[: len(inputs)]
        found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)})[0]
        assert_equal(torch.from_numpy(found), model(*given))


def quantize(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao moves out of torch
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)


class LowRank(nn.Module):
    """What adapters such as LoRA put in a Linear's place."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(0.3 * torch.randn(4, base.in_features, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.down


def adapt(module):
    for layer in module.encoder.layers:
        layer.attention.q_proj, layer.attention.v_proj = map(LowRank, (layer.attention.q_proj, layer.attention.v_proj))
    return module


def hook(module):
    first = module.encoder.layers[0].attention.k_proj
    first.register_forward_hook(lambda module, inputs, output: 2 * output)
    module.encoder.pos_conv_embed.conv.register_forward_hook(lambda module, inputs, output: -output)
    module.feature_extractor.conv_layers[3].register_forward_hook(lambda module, inputs, output: 0.5 * output)
    module.feature_extractor.conv_layers[1].conv.register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))
    return module


def pruned(module):
    for linear in (module.encoder.layers[1].attention.v_proj, module.feature_extractor.conv_layers[2].conv):
        prune.l1_unstructured(linear, "weight", amount=0.5)
        linear.weight_orig.data.mul_(2.0)  # what training does; the weight follows at the next call only
    return module


def without_weight_norm(module):
    nn.utils.parametrize.remove_parametrizations(module.encoder.pos_conv_embed.conv, "weight")
    return module


@pytest.mark.parametrize("change", [quantize, adapt, hook, pruned, without_weight_norm])
def test_changed_modules_are_called(change, monkeypatch):
    """The fast forms read parameters; where a module does more, it is called. As transformers' HubertModel has it."""
    from transformers import HubertConfig, HubertModel

    monkeypatch.setattr(overlap_save, "applicable", lambda x, kernel: True)  # the tiny kernel is too narrow for it
    reference = HubertModel(HubertConfig(**SIZES, mask_time_prob=0.0)).eval()
    encoder = hubert_encoder(EncoderConfig(**SIZES)).eval()
    encoder.load_state_dict(reference.state_dict())
    waveform = speech_like(8000)[None]
    with torch.no_grad():
        before = encoder.encode(waveform, None).states[-1]
        found = change(encoder).encode(waveform, None).states[-1]
        wanted = change(reference)(waveform).last_hidden_state[0]
    # Quantization rounds activations, to one step more or less where the last digit differs.
    torch.testing.assert_close(found, wanted, atol=2e-2 if change is quantize else 1e-5, rtol=0)
    if change is not without_weight_norm:
        assert not torch.equal(found, before)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)], ids=str
)
@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
def test_other_types(dtype, tolerance, wide, student):
    """Features in the type of the parameters, whatever the waveforms' is; with the wide position convolution too."""
    if wide:
        student = load_student(assets.folder("student_mini"))
    waveforms, lengths = batch(16000, 9001)
    cast = copy.deepcopy(student).to(dtype)
    heads = PredictionHeads(student.config.hidden_size, [8]).to(dtype)
    with torch.no_grad():
        wanted = student(waveforms, lengths)
        for given in (waveforms.to(dtype), waveforms):
            found = cast(given, lengths)
            for ours, reference in zip(found.hidden_states, wanted.hidden_states, strict=True):
                assert ours.dtype == dtype
                assert (ours.double() - reference).norm() < tolerance * reference.norm()
        features = EkdUpstream(cast, heads)([waveforms[0], waveforms[1, :9001]])
    assert {state.dtype for state in features["all_hidden_states"]} == {dtype}
    assert torch.equal(features["hidden_states"][-1][1, :27], found.hidden_states[-1][1, :27])


def test_half_precision_of_silence_is_finite(student):
    waveforms = torch.zeros(2, 8000)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.no_grad(), torch.autocast("cpu", dtype):
            assert student(waveforms).hidden_states[-1].isfinite().all()
        output = copy.deepcopy(student).to(dtype)(waveforms.to(dtype))
        assert all(state.isfinite().all() for state in output.hidden_states)


def test_the_matrix_products_are_for_single_precision_and_not_for_apples_gpus():
    kernels, strides = EncoderConfig().conv_kernel, EncoderConfig().conv_stride
    assert fast_conv.applicable(kernels, strides, torch.zeros(1))
    assert not fast_conv.applicable(kernels, strides, torch.zeros(1).double())
    assert not fast_conv.applicable(kernels, strides, torch.zeros(1, device="meta").half())


def test_module_manners(tiny_student):
    """Copied, cast, frozen, trained, called with others' parameters: the same features."""
    inputs = batch(4000, 3000)
    with torch.no_grad():
        wanted = tiny_student(*inputs).hidden_states[-1]
        assert torch.equal(copy.deepcopy(tiny_student)(*inputs).hidden_states[-1], wanted)
        assert torch.equal(tiny_student.train().eval().requires_grad_(False)(*inputs).hidden_states[-1], wanted)
        there_and_back = copy.deepcopy(tiny_student).double().float()
        assert torch.equal(there_and_back(*inputs).hidden_states[-1], wanted)
        parameters = {name: tensor + 0 for name, tensor in tiny_student.state_dict().items()}
        called = torch.func.functional_call(tiny_student, parameters, inputs)
    torch.testing.assert_close(called.hidden_states[-1], wanted, atol=1e-6, rtol=0)


def test_distributed_data_parallel(tiny_student, tmp_path):
    inputs = batch(4000, 3000)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "f"), 1), rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(tiny_student)
        output = wrapped(*inputs)
        assert torch.equal(output.hidden_states[-1], tiny_student(*inputs).hidden_states[-1])
        output.hidden_states[-1].sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(parameter.grad is not None for parameter in tiny_student.parameters())


def test_the_packaged_student_opens_in_single_precision_everywhere():
    """Though it is stored in half precision."""
    from transformers import AutoModel

    ours, theirs = load_student(assets.folder("student_mini")), AutoModel.from_pretrained(assets.folder("student_mini"))
    assert {parameter.dtype for model in (ours, theirs) for parameter in model.parameters()} == {torch.float32}
    waveform = speech_like(8000)[None]
    with torch.no_grad():
        wanted = theirs.eval()(waveform).last_hidden_state
        torch.testing.assert_close(ours(waveform).hidden_states[-1], wanted, atol=1e-5, rtol=0)
