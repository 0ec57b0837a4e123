"""What is refused where it is taken away whose a picture is."""

from __future__ import annotations

from imaging.errors.tree import InputRefused, InternalFault, WrongUsage


class KeyInvalid(WrongUsage):
    """The key that pseudonyms are made with, or the crosswalk beside it, cannot be used."""

    code = "key_invalid"
    expected = "64 hexadecimal digits or more, in a file that only its owner may read, were expected"
    remedy = "Make a key with --make-key"


class NotDeidentifiable(InputRefused):
    """An object that has no pixels, or holds text where nobody can look: nothing of it is given away."""

    code = "not_deidentifiable"
    expected = "a picture was expected"
    remedy = "Leave it out; reports, documents and presentations are not taken"


class BurnedIn(InputRefused):
    """Text is burnt into the picture, or may be."""

    code = "burned_in"
    expected = "a picture without text in its pixels was expected"
    remedy = "Look at it; with --unsure-pixels those are taken that do not say that they have text"


class IdentityLeft(InternalFault):
    """The second look at a de-identified file found what should have gone; the file is withheld."""

    code = "identity_left"
    expected = "nothing that says whose it is was expected"
    remedy = "Report this to the maintainers; the file was withheld"
