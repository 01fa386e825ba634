"""What settled calls teach."""

from __future__ import annotations

from lava_middleware.core.learned import KEPT, MODELS, MOST, Learned


def taught(*pairs: tuple[int, int]) -> Learned:
    learned = Learned()
    for reported, estimated in pairs:
        learned.teach("m", inputs=(reported, estimated), outputs=(reported * 2, estimated), length=reported)
    return learned


def test_an_untaught_model_is_estimated_as_it_is() -> None:
    assert Learned().input_tokens("m", 100) == 100
    assert Learned().mean_output("m") is None


def test_one_call_teaches_its_ratio() -> None:
    learned = taught((150, 100))
    assert learned.input_tokens("m", 200) == 300
    assert learned.output_tokens("m", 200) == 600
    assert learned.mean_output("m") == 150


def test_what_is_usual_is_the_mean_of_all_answers_that_had_output() -> None:
    learned = Learned()
    assert learned.usual_output() is None
    learned.teach("embedding", inputs=(9, 9), outputs=None, length=0)
    assert learned.usual_output() is None
    for model, length in (("a", 100), ("a", 200), ("b", 33)):
        learned.teach(model, inputs=None, outputs=None, length=length)
    assert learned.usual_output() == 111


def test_only_the_last_calls_count() -> None:
    learned = taught(*[(900, 100)] * 10, *[(100, 100)] * KEPT)
    assert learned.input_tokens("m", 100) == 100


def test_a_ratio_is_bounded() -> None:
    assert taught((10**9, 1)).input_tokens("m", 1) == MOST // 1000


def test_models_are_bounded_and_the_one_taught_longest_ago_leaves() -> None:
    learned = Learned()
    for number in range(MODELS + 1):
        learned.teach(f"m{number}", inputs=(2, 1), outputs=None, length=1)
    assert learned.input_tokens("m0", 1) == 1
    assert learned.input_tokens(f"m{MODELS}", 1) == 2


def test_lessons_survive_being_written_and_read() -> None:
    learned = taught((150, 100), (90, 100))
    again = Learned.from_text(learned.to_text())
    assert again.to_text() == learned.to_text()
    assert again.input_tokens("m", 1_000) == learned.input_tokens("m", 1_000)
