"""The entry point: python main.py --model NAME --dataset NAME [flags]."""

import os
import signal
import sys

if __name__ == "__main__":  # no traceback on Ctrl-C while the modules below are imported; later see utils/cli/shell.py
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from utils import cli
from utils.cli import ranks, shell
from utils.errors import Interrupted, RanksLost, UserError, memory_ran_out

# Threads that wait for work sleep instead of spinning: on a busy machine, a run of small tensor operations
# was measured to be 17 times faster, and an idle machine loses nothing. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def check(parsed: cli.Parsed) -> None:
    """Refuse what does not fit together, before anything is made."""
    from utils.engine import launch

    launch.check(parsed.args, parsed.model_class, parsed.dataset_class)


def run(parsed: cli.Parsed) -> dict[str, float]:
    """One run, in this process alone or shared with those that torchrun has started."""
    from utils.ranks import joined

    with joined(parsed.args, ranks.first_is):
        return run_here(parsed)


def run_here(parsed: cli.Parsed) -> dict[str, float]:
    """Build dataset, backbone and model, train, and return the summary."""
    from backbone import get_backbone
    from datasets import get_dataset
    from models import get_model
    from utils import free_memory
    from utils.engine import launch, unchanged
    from utils.engine.first_lines import first_lines
    from utils.engine.training import train

    args = parsed.args
    check(parsed)
    requested = launch.fill_in(args)
    found = launch.find_earlier(args, requested)
    parsed.folder = str(found.folder) if found is not None else None
    if found is not None and found.status == "done" and args.resume == "force":
        return launch.show_finished(found)
    launch.set_up(args, found)
    with launch.warnings_told() as attach:
        dataset = get_dataset(args)
        launch.check_against_dataset(args, dataset)
        launch.check_class_sizes(args, parsed.model_class, dataset)
        dataset.check_samples()
        builds_own = getattr(parsed.model_class, "BUILDS_OWN_NET", False)
        backbone = get_backbone(args) if args.backbone and not builds_own else None
        free_memory.require_images(args, dataset, backbone)
        model = get_model(args, backbone, dataset.get_loss(), dataset.get_transform(), dataset)
        launch.load_checkpoint(model, args)
        told = launch.needs_first_line(args, found)
        first_line = launch.start_line(args, requested, dataset, model, parsed.argv) if told else {}
        launch.compare_data(first_line)
        if found is not None:
            unchanged.check(found, first_line, args)
            if found.status == "done":
                return launch.show_finished(found)
        record = launch.open_record(args, requested, found, first_line, model)
        attach(record)
        parsed.folder = str(record.folder) if record is not None else None
        print("\n".join(first_lines(args, dataset, model, record)), flush=True)
        try:
            return train(model, dataset, args, record, resume=found and found.folder)
        finally:
            if record is not None:
                record.close()


def main(argv: list[str] | None = None) -> int:
    """Run one experiment; exit code 0, 2 for a user error, 1 for a plug-in's error, 128 + signal when interrupted."""
    try:
        parsed = cli.parse(sys.argv[1:] if argv is None else argv, check)
        if parsed is not None:
            ranks.check(parsed.args)
            run(parsed)
        return 0
    except RanksLost as error:
        return ranks.lost(error)
    except UserError as error:
        return cli.fail(error)
    except Interrupted as stop:
        return stop.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:
        if not memory_ran_out(error):
            return cli.fail_in_plugin(error)
        return cli.fail(
            UserError(
                f"out of memory ({' '.join(str(error).split())[:160]}): lower the requested sizes, such as "
                "--batch_size, --eval_batch_size or --buffer_size"
            )
        )


if __name__ == "__main__":
    sys.exit(shell.exits(main))
