"""What `dramatiq worker` imports: the broker is set first, then the actors declare themselves on it."""

import dramatiq

from services import log, reporting, settings
from services.broker import StrictEncoder, make_broker
from worker.runtime import Runtime

configuration = settings.load()
log.configure(configuration)
reporting.start(configuration)  # before there is a broker, which it watches
broker = make_broker(configuration, middleware=[Runtime(configuration)])
dramatiq.set_broker(broker)
dramatiq.set_encoder(StrictEncoder(of_redis=configuration.broker.kind == "redis"))

from worker import actors as actors  # noqa: E402 - actors attach to the broker that is set above
