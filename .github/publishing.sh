#!/usr/bin/env bash
# Writes the addresses of this repository into pyproject.toml, as the Comfy registry wants them: PublisherId, Icon, Banner and
# [project.urls]. GitHub sets the first two variables; run it by hand like
#   GITHUB_REPOSITORY=owner/name GITHUB_REF_NAME=v1.2.3 PUBLISHER_ID=owner .github/publishing.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

repository="https://github.com/${GITHUB_REPOSITORY:?owner/name}"
pictures="https://raw.githubusercontent.com/${GITHUB_REPOSITORY}/${GITHUB_REF_NAME:?a branch or tag}/docs"
publisher="${PUBLISHER_ID:-${GITHUB_REPOSITORY%%/*}}"

sed -i.before \
  -e "s|^PublisherId = .*|PublisherId = \"$publisher\"|" \
  -e "s|^Icon = .*|Icon = \"$pictures/icon.png\"|" \
  -e "s|^Banner = .*|Banner = \"$pictures/banner.png\"|" pyproject.toml
rm pyproject.toml.before
cat >> pyproject.toml <<END

[project.urls]
Repository = "$repository"
Documentation = "$repository#readme"
Issues = "$repository/issues"
END
