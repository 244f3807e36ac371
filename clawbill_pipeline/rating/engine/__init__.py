"""The rating engine: a price and a quantity in, an exact amount and its lines out. Pure Python, Decimal throughout.

No database, clock or network, and no knowledge of tenants or rate cards: those choose the price. ``rate`` is where to
start reading; ``charges`` has a function a model. The rating server and the simulation use it.
"""

from clawbill_pipeline.rating.engine.adjustments import discounted, price_for_share, prorated, true_up
from clawbill_pipeline.rating.engine.quantities import weighted_sum
from clawbill_pipeline.rating.engine.rate import correction, rate, rate_buckets, rate_increment
from clawbill_pipeline.rating.engine.values import Line, Rating, RatingError, Share, Usage

__all__ = [
    "Line",
    "Rating",
    "RatingError",
    "Share",
    "Usage",
    "correction",
    "discounted",
    "price_for_share",
    "prorated",
    "rate",
    "rate_buckets",
    "rate_increment",
    "true_up",
    "weighted_sum",
]
