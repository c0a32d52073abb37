"""Make the bucket that ARTIFACTS names, once its server answers; compose.yaml starts this with --profile s3."""

import os
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError

name = os.environ["ARTIFACTS"].removeprefix("s3://").partition("/")[0]
store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
while True:
    try:
        if name not in [bucket["Name"] for bucket in store.list_buckets()["Buckets"]]:
            store.create_bucket(Bucket=name)
        break
    except (BotoCoreError, ClientError) as error:
        print(f"{error}; once more in 2 s", flush=True)
        time.sleep(2)
print(f"The bucket {name} is there.")
