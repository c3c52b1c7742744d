"""Shows what a turn does as spans of OpenTelemetry (extra `otel`, and opentelemetry-sdk).

    python examples/tracing.py

`FLUXBASE_URL` and `FLUXBASE_TOKEN` say where; `fluxbase-aichat serve` prints both.
"""

from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from fluxbase_aichat import FluxbaseAIChat


def main() -> None:
    """Ask one question; its span, and that of its query, go to stdout as JSON."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    tracer = provider.get_tracer("example")
    # Questions, answers and SQL are in the spans only with trace_content=True.
    with FluxbaseAIChat.from_env(tracer=tracer) as chat:
        chat.ask("sql-assistant", "How many users are there?", timeout=120)
    provider.shutdown()


if __name__ == "__main__":
    main()
