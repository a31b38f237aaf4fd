"""Algorithms and extensions with one fault each; the class's name says which."""

import random

import torch

from engine import EngineError, Pruner, Quantizer, Schedule, hookimpl
from engine.pruning import BlockPruner, FilterPruner, prune_count, smallest_removed


class Sound(Pruner):
    """Smallest weights; the faulty pruners are this one with a fault."""

    one_shot = True

    def calc_mask(self, wrapper, sparsity):
        magnitude = wrapper.weight.detach().abs()
        mask = wrapper.mask("weight")
        if mask is not None:
            magnitude.masked_fill_(mask == 0, -1)
        count = prune_count(magnitude.numel(), sparsity)
        return {"weight_mask": smallest_removed(magnitude, count)}


class BroadcastsMasks(Sound):
    def calc_mask(self, wrapper, sparsity):
        mask = wrapper.weight.new_ones(len(wrapper.weight), *[1] * (wrapper.weight.dim() - 1))
        mask[: prune_count(len(mask), sparsity)] = 0
        return {"weight_mask": mask}


class RemovesTooMuch(Sound):
    def calc_mask(self, wrapper, sparsity):
        return super().calc_mask(wrapper, min(1.0, sparsity * 1.2))


class AlwaysRemovesHalf(Sound):
    def calc_mask(self, wrapper, sparsity):
        return super().calc_mask(wrapper, 0.5)


class NeverRemovesAll(Sound):
    def calc_mask(self, wrapper, sparsity):
        return super().calc_mask(wrapper, min(sparsity, 0.8))


class OvershootsTies(Sound):
    def calc_mask(self, wrapper, sparsity):
        magnitude = wrapper.weight.detach().abs().flatten().float()
        count = prune_count(len(magnitude), sparsity)
        threshold = magnitude.sort().values[count - 1] if count else -1.0
        return {"weight_mask": wrapper.weight.detach().abs() > threshold}


class NeedsTwoChannels(Sound):
    def calc_mask(self, wrapper, sparsity):
        wrapper.weight.detach().flatten(1).std(0)[1]  # the second input
        return super().calc_mask(wrapper, sparsity)


class CannotHalf(Sound):
    def calc_mask(self, wrapper, sparsity):
        wrapper.weight.detach().flatten() @ torch.ones(wrapper.weight.numel())
        return super().calc_mask(wrapper, sparsity)


class DrawsLots(Sound):
    def calc_mask(self, wrapper, sparsity):
        numbers = torch.tensor([random.random() for _ in range(wrapper.weight.numel())])
        count = prune_count(wrapper.weight.numel(), sparsity)
        return {"weight_mask": smallest_removed(numbers, count).view_as(wrapper.weight)}


class PutsWeightsBack(Sound):
    dense_gradients = True

    def apply_masks(self):
        if not self._trained:
            super().apply_masks()


class LosesGradients(Sound):
    def before_step(self):
        self.wrappers[0].weight.grad.zero_()


class LeavesAHook(Sound):
    def preprocess_model(self, model):
        model.register_forward_hook(lambda *args: None)


class ForgetsItsScores(Sound):
    one_shot = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scores = {}

    def before_step(self):
        for wrapper in self.wrappers:
            gradient = wrapper.weight.grad.abs()
            self.scores[wrapper.name] = self.scores.get(wrapper.name, 0) + gradient

    def calc_mask(self, wrapper, sparsity):
        scores = self.scores.get(wrapper.name, wrapper.weight.detach().abs())
        return {"weight_mask": smallest_removed(scores, prune_count(scores.numel(), sparsity))}


class HooksThatReport(Sound):
    """A copy of the model goes on counting here."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.set_wrappers_attribute("seen", torch.zeros(()))

    def preprocess_model(self, model):
        self.handle = model.register_forward_hook(CountsForwards(self.wrappers[0]))

    def restore_model(self):
        self.handle.remove()


class CountsForwards:
    def __init__(self, wrapper):
        self.wrapper = wrapper

    def __call__(self, *args):
        self.wrapper.seen += 1

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return print, ()


class NeedsTheModelUnwrapped(Sound):
    def step(self):
        if torch.distributed.is_initialized():
            raise RuntimeError("no processes, please")


class BreaksTheGraph(Sound):
    def preprocess_model(self, model):
        self.handle = model.register_forward_hook(_print)

    def restore_model(self):
        self.handle.remove()


def _print(module, inputs, output):
    print("forward", output.sum().item())


class IgnoresSchedules(Sound):
    def calc_mask(self, wrapper, sparsity):
        inside = self.host is not self
        return super().calc_mask(wrapper, 0.1 if inside else sparsity)


class RefusesConstraints(FilterPruner):
    def filter_importance(self, wrapper, channels):
        return channels.rows(wrapper.weight.detach()).sum(dim=1)

    def compress(self):
        if self.extensions:
            raise RuntimeError("alone or not at all")
        return super().compress()


class RefusesQuantizers(Sound):
    def calc_mask(self, wrapper, sparsity):
        if hasattr(type(wrapper.module), "computed_base"):
            raise RuntimeError("quantized")
        return super().calc_mask(wrapper, sparsity)


class FailsInSpeedup(Sound):
    def apply_speedup(self, *args, **kwargs):
        model = super().apply_speedup(*args, **kwargs)
        with torch.no_grad():
            model.head.bias.add_(1)
        return model


class ExportsDenseWeights(Sound):
    def export_model(self, model_path, mask_path=None, onnx_path=None, **rest):
        super().export_model(model_path, mask_path, onnx_path, **rest)
        state = torch.load(model_path)
        torch.save({key: value * 2 for key, value in state.items()}, model_path)


class ExportsAnotherModel(Sound):
    def export_model(self, model_path, mask_path=None, onnx_path=None, **rest):
        with torch.no_grad():
            self.bound_model.head.bias.add_(1)
            super().export_model(model_path, mask_path, onnx_path, **rest)
            self.bound_model.head.bias.sub_(1)


class TakesItsTime(Sound):
    def step(self):
        for _ in range(200):
            torch.randn(128, 128) @ torch.randn(128, 128)


# -- quantizers -----------------------------------------------------------------------------------


class SoundQuantizer(Quantizer):
    """Rounds to the symmetric grid over the largest magnitude."""

    quant_grad = None

    def quantize_weight(self, weight, wrapper):
        return self.round(weight, wrapper)

    def round(self, tensor, wrapper):
        levels = 2 ** (wrapper.config["quant_bits"] - 1) - 1
        scale = (tensor.detach().abs().max() / levels).clamp(min=1e-6)
        return tensor + ((tensor / scale).round() * scale - tensor).detach()


class TooManyValues(SoundQuantizer):
    def round(self, tensor, wrapper):
        return (tensor * 1000).round() / 1000


class ChangesDtype(SoundQuantizer):
    def compress(self):
        model = super().compress()
        self.handle = model.register_forward_hook(lambda module, x, output: output.float())
        return model


class StopsGradients(SoundQuantizer):
    def quantize_weight(self, weight, wrapper):
        return super().quantize_weight(weight, wrapper).detach()


class ChangesWeights(SoundQuantizer):
    def quantize_weight(self, weight, wrapper):
        quantized = super().quantize_weight(weight, wrapper)
        with torch.no_grad():
            wrapper.weight.mul_(0.999)
        return quantized


class LearnsInEvaluation(SoundQuantizer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = 0

    def quantize_weight(self, weight, wrapper):
        self.calls += 1
        return super().quantize_weight(weight, wrapper) * (1 + 1 / self.calls)


class DividesByTheMaximum(SoundQuantizer):
    def round(self, tensor, wrapper):
        scale = tensor.detach().abs().max() / 3
        return tensor + ((tensor / scale).round() * scale - tensor).detach()


class QuantizesAfterMasks(SoundQuantizer):
    """Zero is not on this grid, and masked weights do not stay zero."""

    def compress(self):
        model = super().compress()
        for wrapper in self.wrappers:
            transforms = wrapper.module.__dict__["_engine_transforms"]
            for stage in list(transforms)[1:]:
                del transforms[stage]
        return model

    def round(self, tensor, wrapper):
        return tensor + (tensor.sign() + (tensor == 0) - tensor).detach()


class ExportsOtherWeights(SoundQuantizer):
    def export_model(self, model_path, *args, **kwargs):
        with torch.no_grad():
            for wrapper in self.wrappers:
                wrapper.weight.mul_(2)
            super().export_model(model_path, *args, **kwargs)
            for wrapper in self.wrappers:
                wrapper.weight.div_(2)


# -- schedules and extensions ---------------------------------------------------------------------


class FallsInBetween(Schedule):
    @hookimpl(wrapper=True)
    def sparsity(self, wrapper, epoch):
        final = yield
        return {0: final / 2, 1: 0.0}.get(epoch, final)

    def calc_mask_anew(self):
        """Nothing: masks that are removed already may come back."""


class NeverArrives(Schedule):
    @hookimpl(wrapper=True)
    def sparsity(self, wrapper, epoch):
        return (yield) / 2


class FindsNothing(Schedule):
    """A search that decides upon nothing."""

    def __init__(self, *args, evaluator=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.evaluator = evaluator

    @hookimpl(wrapper=True)
    def sparsity(self, wrapper, epoch):
        yield
        return 0.0


class AsksTooLate(FindsNothing):
    def compress(self):
        model = super().compress()
        model.stem.weight.data.mul_(2)
        if self.evaluator is None:
            raise EngineError("an evaluator is needed")
        return model


class ChangesItsMind(BlockPruner):
    times = 0

    def preprocess_model(self):
        ChangesItsMind.times += 1

    def score_block(self, wrapper, before):
        place = float(wrapper.name.rpartition(".")[2])
        return before.new_full((len(before),), place * (-1) ** self.times)


class TakesTheFirstOut(BlockPruner):
    def score_block(self, before, after):
        return torch.arange(len(before)) + (after - before).square().mean()

    def apply_speedup(self, dummy_input=None, kwargs=None):
        model = self.unwrap()
        del model[1][0]
        return model


class DisturbsTraining:
    @hookimpl
    def step(self):
        torch.rand(1)
        self.compressor.bound_model.head.bias.data.add_(1e-3)

    @hookimpl
    def preprocess_model(self, compressor):
        self.compressor = compressor


class AddsNothing:
    @hookimpl
    def extra_loss(self, output):
        return 0 * output.sum()


class FailsWithQuantizers:
    @hookimpl
    def preprocess_model(self, compressor):
        if compressor.kind == "quantization":
            raise RuntimeError("masks are expected")


class LeavesAnAttribute:
    @hookimpl
    def preprocess_model(self, model):
        model.watched = True


class CannotBeCopied:
    @hookimpl
    def preprocess_model(self, model):
        model.__dict__["lock"] = self.lock = (each for each in ())

    @hookimpl
    def restore_model(self, model):
        model.__dict__.pop("lock", None)


class CountsSteps:
    """Removes one filter more with each step: not saved, so not resumed."""

    def __init__(self):
        self.steps = 0

    @hookimpl
    def step(self):
        self.steps += 1

    @hookimpl(wrapper=True)
    def sparsity(self):
        asked = yield
        return min(asked, 0.1 * self.steps)


class MasksNormsOnly:
    """Cuts the norm's shift after speedup has decided: outputs change."""

    @hookimpl
    def restore_model(self, model):
        with torch.no_grad():
            model.head.bias.add_(1)
