"""A checkpoint that people talk to, with the chat that it is having."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domain_tokens.checkpoints import load_model, load_tokenizer, read_card, verify_folder
from domain_tokens.errors import UserError
from domain_tokens.inference import Sampling, generate, prepack_
from domain_tokens.prompts import Renderer
from domain_tokens.runs import choose_device, highlighted
from domain_tokens.vocabulary import layout_of


@dataclass
class ChatSession:
    """A loaded checkpoint; history holds the ids of its chat, so that fact tokens stay facts."""

    folder: Path
    title: str
    model: Any
    tokenizer: Any
    renderer: Renderer
    fact_ids: range
    history: list[int] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path, precision: str) -> "ChatSession":
        """Load a checkpoint; its run card, if it has one, gives stage and condition."""
        verify_folder(folder)
        card = read_card(folder)
        tokenizer = load_tokenizer(folder)
        try:
            layout = layout_of(tokenizer)
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from None
        device, dtype = choose_device(precision)
        return cls(
            folder=folder,
            title=f"{folder}" + (f" ({card['stage']}, {card['condition']})" if card else ""),
            model=prepack_(load_model(folder, dtype=dtype).to(device)),
            tokenizer=tokenizer,
            renderer=Renderer(tokenizer),
            fact_ids=layout.fact_ids,
        )

    def respond(
        self, prompt: list[int], *, count: int, max_new_tokens: int, sampling: Sampling
    ) -> list[dict[str, Any]]:
        """Return `count` responses to one prompt: text, ids, fact tokens, why it stopped.

        `shown` is the text for a person: facts (known by id) highlighted, control characters
        escaped.
        """
        responses = generate(
            self.model,
            [prompt] * count,
            eos_id=self.renderer.eos,
            max_new_tokens=max_new_tokens,
            batch_size=32,
            sampling=sampling,
        )
        found = []
        for number, response in enumerate(responses, 1):
            facts = [token in self.fact_ids for token in response.token_ids]
            found.append(
                {
                    "model": str(self.folder),
                    "sample": number,
                    "response": self.tokenizer.decode(response.token_ids, skip_special_tokens=True),
                    "token_ids": response.token_ids,
                    "fact_tokens": sum(facts),
                    "stop": response.stop,
                    "shown": highlighted(self.tokenizer, response.token_ids, facts),
                }
            )
        return found
