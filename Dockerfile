FROM python:3.13-slim AS build
RUN python -m venv /opt/tidegate
ENV PATH=/opt/tidegate/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements-runtime.lock ./
RUN pip install --require-hashes -r requirements-runtime.lock
COPY . .
RUN pip install --no-deps --no-build-isolation .

FROM python:3.13-slim
COPY --from=build /opt/tidegate /opt/tidegate
WORKDIR /app
COPY examples examples
RUN useradd --system tidegate
USER tidegate
ENV PATH=/opt/tidegate/bin:$PATH PYTHONUNBUFFERED=1
ENTRYPOINT ["tidegate"]
CMD ["worker"]
