"""What is English is told; another language only on evidence."""

from __future__ import annotations

import pytest

from imaging.text.language import language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The heart is normal in size. There is no pleural effusion.", "en"),
        ("NO ACUTE DISEASE", "en"),
        ("s/p CABG w/o CP, h/o COPD, r/o PNA, f/u", ""),
        ("Pneumonia?", ""),
        ("", ""),
        ("12 x 30 mm", ""),
        ("Das Herz ist normal groß. Kein Nachweis eines Pleuraergusses.", "de"),
        ("Le cœur est de taille normale. Pas d'épanchement pleural.", "fr"),
        ("La silueta cardiaca es normal. No hay derrame pleural.", "es"),
        ("Il cuore è nei limiti. Non si osserva versamento pleurico.", "it"),
        ("Coração de dimensões normais. Não há derrame pleural.", "pt"),
        ("Het hart is niet vergroot. Geen aanwijzingen voor pneumonie.", "nl"),
        ("Hjärtat är inte förstorat. Inga tecken till pneumoni.", "sv"),
        ("Сердце не расширено.", "und"),
        ("心影不大 肺野清晰", "und"),
        ("القلب طبيعي الحجم", "und"),
        # Names of drugs and units do not make a text foreign.
        ("The patient takes β-blockers; the dose is 5 µg. Dr. Müller was told.", "en"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert language_of(text) == language
