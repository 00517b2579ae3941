#!/usr/bin/env bash
# What a release needs: the commit is tagged with its version, nothing is uncommitted, the book is built without a warning, and wheel and
# sdist work in fresh environments. Uploads nothing; docs/release.md has the whole list.
#   git tag vX.Y.Z && bash scripts/release.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
version="$(python -c 'import megatron_fork; print(megatron_fork.__version__)')"
[ -z "$(git status --porcelain)" ] || fail "there are uncommitted changes" "commit or remove them: git status"
git tag --points-at HEAD | grep -qx "v$version" || fail "this commit is not tagged v$version" "git tag v$version, or set the version in megatron_fork/__init__.py"
grep -q "^## $version (20" CHANGELOG.md || fail "CHANGELOG.md has no date for $version" "write: ## $version (YYYY-MM-DD)"
rm -rf dist site
mkdocs build --strict --quiet
bash scripts/test_package.sh
echo "ready: $(ls dist) and site/"
