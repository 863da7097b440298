"""The stages by name, one file each."""

from hybridsnn.stages import convert, evaluate, export, finetune, load_ann, report, train_ann
from hybridsnn.stages.base import Stage

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        train_ann.STAGE,
        load_ann.STAGE,
        convert.STAGE,
        finetune.STAGE,
        evaluate.STAGE,
        report.STAGE,
        export.STAGE,
    )
}
