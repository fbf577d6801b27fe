"""The codes of error rows, each with what causes it and what to do: the one place where a code is made.

They are published (`error.code`) and counted in manifests, so a code is never renamed. The engine has its own few,
which it gives as plain text; `Code.registered` admits them to a result and refuses one that is not listed here.
docs/errors.md is written from this table.
"""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Why a row has no answer. `cause` and `remedy` are sentences for the user."""

    cause: str
    remedy: str

    def __new__(cls, value: str, cause: str, remedy: str) -> Code:
        """A member is its text, with two sentences beside it."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.cause, member.remedy = cause, remedy
        return member

    @classmethod
    def registered(cls, text: str) -> Code:
        """The member of that text. ValueError if there is none."""
        for code in cls:
            if code == text:
                return code
        raise ValueError(f"{text!r} is not a registered error code")

    INVALID_JSON = (
        "invalid_json",
        "The line is not JSON as RFC 8259 has it, or holds what cannot be kept: NaN or Infinity, a number beyond 4,300 "
        "digits or a float's range, half of a surrogate pair, nesting deeper than 64 levels.",
        "Write the line again with a JSON library; the message names file, line and character.",
    )
    NOT_AN_OBJECT = (
        "not_an_object",
        "The line is valid JSON, but a text, a number, an array or null.",
        'Write one object a line: {"text": ...}.',
    )
    DUPLICATE_KEY = (
        "duplicate_key",
        "An object in the line has the same key twice, or a key that a k=v folder gives already, so that "
        "readers would disagree on the value.",
        "Rename one of the two keys.",
    )
    INVALID_UTF8 = (
        "invalid_utf8",
        "The text is not UTF-8 from the byte on that the message names.",
        "Convert the file to UTF-8; a file of another encoding has this error in most rows.",
    )
    UNREADABLE_VALUE = (
        "unreadable_value",
        "A date or time in the row is beyond the years 1 to 9999, or in a time zone that is not known here.",
        "Correct the value, or store the column as text; a column that nothing reads may hold it.",
    )
    TRUNCATED_LINE = (
        "truncated_line",
        "The file's last line ends inside its JSON object.",
        "Whoever wrote the file was interrupted: write or copy it again.",
    )
    LINE_TOO_LONG = (
        "line_too_long",
        "The line is longer than 64 MiB; it was skipped without being held in memory.",
        "Split the row, or leave out the large value; check that the lines end in a newline.",
    )
    BLANK_PROMPT = (
        "blank_prompt",
        "The prompt is empty or holds nothing but spaces, as it does where the column is null.",
        "Fill the column, or say in job.prompt what is asked where it is empty.",
    )
    PROMPT_TOO_LONG = (
        "prompt_too_long",
        "The prompt leaves no room for an answer in the model's context; prompts are never cut unasked.",
        'Set input.on_too_long = "truncate", shorten the text, or take a model with a longer context.',
    )
    BAD_PROMPT_IDS = (
        "bad_prompt_ids",
        "The value in the column of job.prompt_ids is null, not a list of integers, or holds an id that the model's "
        "vocabulary does not.",
        "Make the ids with the tokenizer of the model that answers.",
    )
    UNKNOWN_ROLE = (
        "unknown_role",
        "A role that comes from the row is none of system, user, assistant, tool and developer.",
        "Correct the column that gives the role.",
    )
    TEMPLATE_ERROR = (
        "template_error",
        "The prompt's template failed on the values of this row, or went over a limit of steps, time or size.",
        "The message names the error and the line of the template; let it allow for every type of value in the column.",
    )
    TOKENIZER_ERROR = (
        "tokenizer_error",
        "The model's tokenizer failed on the row's text: a regular expression of its own searched too long, it does "
        "not know a character, or the text holds half of a surrogate pair.",
        "Change the row; if many rows have it, fetch the model's tokenizer.json again.",
    )
    OUT_OF_MEMORY = (
        "out_of_memory",
        "The sequence alone is more than the device's memory holds.",
        "Lower sampling.max_tokens, quantize the model, or take a device with more memory.",
    )
    NAN_LOGITS = (
        "nan_logits",
        "The model computed values that are not numbers.",
        "Set engine.dtype to bfloat16 or float32; if every row has it, the weights are damaged: fetch them again.",
    )
    WORKER_DIED = (
        "worker_died",
        "Computing this row alone ended two worker processes.",
        "The last words in the run's folder workers/ say how they ended; change the row, or use another device.",
    )
    DEADLINE = (
        "deadline",
        "The run ended at schedule.deadline before this row was answered. Not counted against output.error_budget.",
        "Run the same command again: it answers what is missing and publishes the complete result.",
    )
