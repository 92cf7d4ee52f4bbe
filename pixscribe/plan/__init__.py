"""What a run will be before it is begun: images, questions, tokens, USD, hours and storage. Asks the model nothing.

`make_plan` lists the source (`census.py`), reads all of its images or some (`looking.py`), takes the length of answers
from what the output holds (`answers.py`), and adds up (`estimate.py`). It writes nothing anywhere.
"""

from pixscribe.plan.estimate import Plan, make_plan

__all__ = ["Plan", "make_plan"]
