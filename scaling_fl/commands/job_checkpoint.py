"""A job's checkpoint as `evaluate` and `export` read it: which one, its job's configuration, and the model in it."""

import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from scaling_fl.checkpoint import resume
from scaling_fl.checkpoint.header import check_header
from scaling_fl.checkpoint.storage import storage_errors
from scaling_fl.checkpoint.store import CheckpointStore, round_of
from scaling_fl.config import compatibility
from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task, reads_over_network
from scaling_fl.errors import UserError
from scaling_fl.federated import algorithms, site_state
from scaling_fl.federated.server_state import parameters
from scaling_fl.models import base, fingerprints, four_bit, loading
from scaling_fl.models.flat_parameters import FlatModel, Layout
from scaling_fl.progress import Report, Send, waiting
from scaling_fl.text import one_line


class JobCheckpoint:
    """The file that the key `checkpoint` names, or the newest of `job_name`. Raises `UserError` if it can't be read."""

    def __init__(self, send: Send, typed: Config):
        folder, round_ = _find(typed)
        self.store = CheckpointStore(folder)
        with waiting(send, not self.store.local), tempfile.TemporaryDirectory() as work:
            with storage_errors(f"checkpoints_dir={self.store.url}", "cannot list it"):
                rounds = self.store.rounds()
            if round_ is None and rounds:
                round_ = rounds[0]
            if round_ not in rounds:
                found = one_line(", ".join(map(str, rounds)), 60) or "none"
                sought = "a checkpoint" if round_ is None else f"a checkpoint of round {round_}"
                raise UserError(
                    f"checkpoints_dir={self.store.url}: expected {sought}, found rounds: {found}; correct the folder, the "
                    "round or job_name"
                )
            self.round = round_
            self._tensors, self.header = self.store.fetch(round_, Path(work) / "state.safetensors")
        check_header(self.title, self.header)

    @property
    def title(self) -> str:
        return f"{self.store.url}: round {self.round}"

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(map(str, self.header["label_names"]))

    def config_with(self, typed: Config) -> Config:
        """The job's keys, where the command line leaves the default. Keys of other versions are left out."""
        job, defaults, now = self.header["config"], Config().to_mapping(), typed.to_mapping()
        keys = {key: job.get(key, default) if now[key] == default else now[key] for key, default in defaults.items()}
        if typed.test_path is not None:
            keys["test_fraction"] = 0.0
        config = Config.from_mapping(keys)
        if not config.has_global_model and config.site is None:
            raise UserError(
                f"{self.title}: {config.no_global_model} has no global model; add site=… for the own model of a site"
            )
        return config

    def load_model(self, send: Send, config: Config, data: Config, report: Report) -> loading.LoadedModel:
        """Load the base model, which has architecture and tokenizer, and fill it with the checkpoint's parameters.

        `data` says where the job's data are, which the vocabulary of model=tiny comes from. Raises `UserError` if data or
        model aren't those that the job started with.
        """
        texts: list[str] = []
        if config.model == "tiny":
            with waiting(send, reads_over_network(data)):
                task = load_task(data, report)
            compatibility.check_data(config, self.header["data_digest"], task.digest())
            texts = task.train.texts
        with waiting(send):  # for a download, or a slow disk
            loaded = loading.load_model(config.model, self.label_names, texts, config.max_seq_len, config.seed)
        base.freeze(loaded.module, config, loaded.new_parameters)
        model = FlatModel(loaded.module, torch.zeros(Layout(loaded.module).size))
        weights = fingerprints.pretrained(loaded, model.arrays(model.flat) | base.arrays(loaded.module))
        architecture = loading.architecture(loaded.module)
        resume.check_origin(config, self.header, {"weights": weights, "architecture": architecture})
        try:
            model.fill(model.flat, parameters(self._tensors))
        except (ValueError, KeyError) as error:  # checkpoints of 0.1.0 don't say which model they belong to
            raise UserError(
                f"{self.title}: it belongs to another model than model={config.model} ({error}); set model=… to the one "
                "the job started with"
            ) from error
        if config.base_precision == "nf4":
            four_bit.check(torch.device("cpu"))
        base.convert(loaded.module, config)
        if config.site is not None:
            self._fill_with_own_model(config, model)
        return loaded

    def _fill_with_own_model(self, config: Config, model: FlatModel) -> None:
        """Replace the server's parameters by those of the own model of `config.site`."""
        by_site: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
        for full in self._tensors:
            site, _, name = full.removeprefix(site_state.PREFIX).partition(".")
            if full.startswith(site_state.PREFIX) and not name.startswith("optimiser."):
                by_site[int(site)][name] = torch.from_numpy(self._tensors[full])
        if config.has_global_model and config.ditto_lambda == 0:
            raise UserError(f"site={config.site}: the sites of this job have no models of their own; leave out site")
        if config.site not in by_site:
            found = one_line(", ".join(map(str, sorted(by_site))), 60)
            raise UserError(
                f"site={config.site}: {self.title} has no own model of this site; it has those of the sites {found}, which "
                "have taken part; choose one of them"
            )
        own = algorithms.own_params(config, model.layout, model.flat, by_site[config.site])
        model.flat.copy_(own.clone())


def _find(typed: Config) -> tuple[str, int | None]:
    """The folder and the round of the checkpoint that is meant; no round means the newest."""
    if typed.checkpoint is not None:
        folder, _, name = typed.checkpoint.rpartition("/")
        round_ = round_of(name)
        if round_ is None:
            raise UserError(
                f"checkpoint={typed.checkpoint}: expected a file round-NNNNNN.safetensors, like those that a job writes to its "
                "checkpoints_dir; for a trained model, name its folder"
            )
        return folder or ("/" if typed.checkpoint.startswith("/") else "."), round_
    newest_in = typed.checkpoints_dir if typed.job_name is None else typed.named(typed.job_name).checkpoints_dir
    if newest_in is None or "{job_name}" in newest_in:
        raise UserError(
            "checkpoint: none is given; add checkpoint=…/round-NNNNNN.safetensors, or job_name=… for the job's newest"
        )
    return newest_in, None
