# What agents work in, for SANDBOX=docker: put in what they shall find. It needs python3, a shell, and a /workspace that
# any user may write to. For the browser tools add chromium-headless-shell and fonts-liberation, and build the workers' image
# with `--build-arg LOCK=requirements-browser.lock`.
FROM python:3.11-slim-bookworm AS sandbox
RUN apt-get update && \
    apt-get install -y --no-install-recommends bash curl file git jq less procps ripgrep unzip zip && \
    rm -rf /var/lib/apt/lists/* && \
    mkdir -m 1777 /workspace
WORKDIR /workspace

# One image for API, workers and migrations; the command chooses.
FROM python:3.11-slim-bookworm AS packages
ARG LOCK=requirements.lock
COPY ${LOCK} packages.lock
RUN python -m venv /opt/longrun && \
    /opt/longrun/bin/pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: -r packages.lock

FROM python:3.11-slim-bookworm AS longrun
RUN useradd --system --uid 10001 --no-create-home longrun
COPY --from=packages /opt/longrun /opt/longrun
WORKDIR /app
COPY migrations migrations
COPY services services
COPY agent agent
COPY api api
COPY worker worker
RUN /opt/longrun/bin/python -m compileall -q .
ENV PATH=/opt/longrun/bin:$PATH PYTHONUNBUFFERED=1 ENVIRONMENT=production
USER longrun
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/api/health', timeout=2)"]
CMD ["uvicorn", "--factory", "api.app:create_app", "--host", "0.0.0.0", "--port", "8000", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--timeout-graceful-shutdown", "10"]
