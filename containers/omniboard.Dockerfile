# Omniboard, for `docker compose --profile tracking up`. Built from npm, whose versions are the ones that the tests run.
FROM node:20.18.1-slim
RUN npm install --global --ignore-scripts --no-audit --no-fund omniboard@2.16.1
USER 1000
EXPOSE 9000
ENTRYPOINT ["omniboard"]
