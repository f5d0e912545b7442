# MLflow's server with the drivers of PostgreSQL and S3: built by cluster/compose.yaml.
FROM python:3.11-slim-bookworm
RUN pip install --no-cache-dir mlflow==3.17.2 psycopg2-binary==2.9.10 boto3==1.40.0
RUN useradd --create-home --uid 1000 mlflow
USER mlflow
