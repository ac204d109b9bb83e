# What agents work in, for SANDBOX=docker: put in what they shall find. It needs python3, a shell, and a /workspace that
# any user may write to. For the browser tools add chromium-headless-shell and fonts-liberation, and build the workers' image
# with `--build-arg LOCK=requirements-browser.lock`.
FROM python:3.11-slim-bookworm AS sandbox
# Whatever Debian has at the moment is meant: security updates above all.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install -y --no-install-recommends bash curl file git jq less procps ripgrep unzip zip && \
    rm -rf /var/lib/apt/lists/* && \
    mkdir -m 1777 /workspace
WORKDIR /workspace

# Wheels only, by their hashes: nothing is compiled, so nothing that compiles is needed.
FROM python:3.11-slim-bookworm AS packages
ARG LOCK=requirements.lock
WORKDIR /build
COPY ${LOCK} packages.lock
RUN python -m venv --without-pip /opt/longrun && \
    python -m pip --python /opt/longrun/bin/python install --no-cache-dir --require-hashes --no-deps --only-binary :all: \
        -r packages.lock

# One image for API, previews, workers and migrations; the command chooses. Exec form: the process itself gets the signals.
FROM python:3.11-slim-bookworm AS longrun
RUN python -m pip uninstall --yes --root-user-action ignore setuptools wheel pip && \
    useradd --system --uid 10001 --no-create-home longrun
COPY --from=packages /opt/longrun /opt/longrun
WORKDIR /app
COPY migrations migrations
COPY services services
COPY agent agent
COPY api api
COPY worker worker
RUN /opt/longrun/bin/python -m compileall -q .
ENV PATH=/opt/longrun/bin:$PATH PYTHONUNBUFFERED=1 ENVIRONMENT=production
USER 10001:10001
EXPOSE 8000
# Of the API; the others are given their own (docker-compose.yml).
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/api/health', timeout=2)"]
CMD ["uvicorn", "--factory", "api.app:create_app", "--host", "0.0.0.0", "--port", "8000", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--timeout-graceful-shutdown", "10"]
