# c3tools with torch for CPUs, FAISS and the search page.
#
#     docker build -t c3tools .
#     docker run --rm -v "$PWD:/data" c3tools embed photos/

FROM python:3.13-slim
RUN pip install --no-cache-dir uv
COPY . /source
RUN uv pip install --system --no-cache --torch-backend cpu "/source[cpu,serve]" && rm -r /source
RUN useradd --create-home c3
USER c3
WORKDIR /data
ENTRYPOINT ["c3"]
CMD ["--help"]
