"""Runs of a model over the samples of a task: asked in batches, written line by line, resumed, scored and compared.

    OUT/TASK/SHOTS-shot/BUDGET/samples.jsonl     what was asked and answered (`records`)
                              /scores.jsonl      the score of every sample (`score`)
                              /result.json       the numbers
                              /judged.jsonl      what a judge said (`judge`)
    OUT/report.html, OUT/accuracy_TASK.png       (`report`)

Everything but the answers is made from `samples.jsonl` alone, without the model.
"""
