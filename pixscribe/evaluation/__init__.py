"""A run against ground truth: precision, recall, mAP, confusions, and the images where most went wrong.

    results = open_results(run)
    evaluation = evaluate(results, Path("truth.json"))
    save_evaluation(results, evaluation)          # runs/<id>/evaluation.json, which the page of the run shows

Keys of `evaluation.json` (each is described where it is defined, in `outcome.py`):

    version, run, output
    truth     {file, images, objects, crowds, labels}
    images    {both, by_end_of_name, ambiguous, truth_only, run_only, other_size}
    warnings  [sentence], notes [sentence]
    prompts   [{prompt, kind, images, without_answer, truth_objects, answered_objects, scored_objects,
                boxes {map, ap50, ap75}, masks the same or null, micro {precision, recall, f1}, macro the same,
                labels [{label, in_truth, truth, answered, hits, missed, wrong, ignored, precision, recall, f1, map}],
                foreign_labels, foreign_objects, confusion [{truth, answered, count}],
                worst_images [{file_name, errors, missed, confused, surplus, has_answer, truth_objects,
                               truth_boxes [{label, xyxy, answered}], wrong [index]}]}]
"""

from pixscribe.evaluation.evaluating import as_json, evaluate_run, save_evaluation
from pixscribe.evaluation.outcome import Evaluation

__all__ = ["Evaluation", "as_json", "evaluate_run", "save_evaluation"]
