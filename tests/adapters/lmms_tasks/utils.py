"""Functions of the tasks beside this file; loaded by lmms-eval, in the folder that holds the pictures."""

from PIL import Image


def doc_to_visual(doc):
    return [Image.open(doc["picture"]).convert("RGB")] if doc["picture"] else []


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def doc_to_choice(doc):
    return doc["choices"]


def score(doc, results):
    return {"right": float(results[0].strip() == doc["answer"])}


def doc_to_text_of_round(
    doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None
):
    if round_idx is None:
        return doc["question"]
    return doc_to_visual(doc), doc["second_question"], round_idx == 2, previous_output, None


def score_rounds(doc, results):
    return {"all_right": float([answer.strip() for answer in results[0]] == [doc["answer"], doc["second_answer"]])}
