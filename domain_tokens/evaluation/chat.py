"""A checkpoint that people talk to, with the chat that it is having."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domain_tokens.checkpoints import read_card, verify_folder
from domain_tokens.evaluation.checkpoint import LoadedCheckpoint, load_to_decode
from domain_tokens.evaluation.fact_tokens import read_response
from domain_tokens.inference import Sampling, generate
from domain_tokens.prompts import Renderer
from domain_tokens.runs import choose_device, highlighted_text


@dataclass
class ChatSession:
    """A loaded checkpoint; history holds the ids of its chat, so that fact tokens stay facts."""

    subject: LoadedCheckpoint
    title: str
    renderer: Renderer
    history: list[int] = field(default_factory=list)

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.subject.tokenizer

    @property
    def fact_ids(self) -> range:
        """The ids of the 45 fact rows."""
        return self.subject.layout.fact_ids

    @classmethod
    def load(cls, folder: Path, precision: str) -> "ChatSession":
        """Load a checkpoint; its run card, if it has one, gives stage, condition and treatment."""
        verify_folder(folder)
        card = read_card(folder)
        subject = load_to_decode(folder, choose_device(precision), card)
        arm = f" ({card['stage']}, {card['condition']})" if card else ""
        return cls(subject, title=f"{folder}{arm}", renderer=Renderer(subject.tokenizer))

    def respond(
        self, prompt: list[int], *, count: int, max_new_tokens: int, sampling: Sampling
    ) -> list[dict[str, Any]]:
        """Return `count` responses to one prompt: text, ids, fact tokens, why it stopped.

        `shown` is the text for a person: facts (known by id) highlighted, control characters
        escaped.
        """
        responses = generate(
            self.subject.model,
            [prompt] * count,
            eos_id=self.renderer.eos,
            max_new_tokens=max_new_tokens,
            batch_size=32,
            sampling=sampling,
        )
        rows = []
        for number, response in enumerate(responses, 1):
            text, spans = read_response(self.subject, response.token_ids)
            rows.append(
                {
                    "model": str(self.subject.folder),
                    "sample": number,
                    "response": text,
                    "token_ids": response.token_ids,
                    "fact_tokens": len(spans),
                    "stop_reason": response.stop_reason,
                    "shown": highlighted_text(text, spans),
                }
            )
        return rows
