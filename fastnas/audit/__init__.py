"""How wrong is each hypergradient on a supernet, and which one to trust? ``python -m fastnas.audit``.

config      what an audit is told, and how far it goes
cost        what it will take, told before it begins
state       the one state of a supernet at which everything is measured
problems    oracles that are counted, and the mean of several minibatches
reference   the yardsticks
estimators  every method by every kind of products
neumann     error against K, beside the bound
reverse     memory against T
run         all of it in order
report      the tables
plot        the same as a picture
folder      the files
"""

from fastnas.audit.config import AuditConfig, AuditOptions, AuditRun
from fastnas.audit.run import audit

__all__ = ["AuditConfig", "AuditOptions", "AuditRun", "audit"]
