# Builds the client with Debian's packages: sh build.sh FOLDER. Then: FOLDER/generate ADDRESS COMMAND ...
set -e
here=$(cd "$(dirname "$0")" && pwd)
protos=${TRIPTYCH_PROTOS:-$here/../../protos}
errors=${TRIPTYCH_ERRORS:-$here/../protos/errors.proto}
mkdir -p "$1/stubs" "$1/classes"
folder=$(cd "$1" && pwd)
# What the service that clients call imports.
names="tensor model lora output_format editing sampling guidance generation_parameters image_generation"
files=""
for name in $names; do files="$files triptych/v1/$name.proto"; done
# shellcheck disable=SC2086 # several words
protoc -I "$protos" -I "$(dirname "$errors")" --plugin=protoc-gen-grpc="$(command -v grpc_java_plugin)" \
  --java_out="$folder/stubs" --grpc_out="$folder/stubs" $files errors.proto
jars=""
for jar in grpc-api grpc-context grpc-core grpc-netty grpc-protobuf grpc-protobuf-lite grpc-stub protobuf guava \
  netty-buffer netty-codec netty-codec-http netty-codec-http2 netty-common netty-handler netty-resolver netty-transport \
  netty-transport-native-unix-common perfmark-api opencensus-api gson jsr305 error_prone_annotations geronimo-annotation-1.3-spec; do
  [ -e "/usr/share/java/$jar.jar" ] || { echo "/usr/share/java has no $jar.jar: see docs/clients.md" >&2; exit 1; }
  jars="$jars:/usr/share/java/$jar.jar"
done
# shellcheck disable=SC2046 # several words
javac -nowarn -d "$folder/classes" -cp "$jars" $(find "$folder/stubs" -name '*.java') "$here/Generate.java"
printf '#!/bin/sh\nexec java -cp "%s" Generate "$@"\n' "$folder/classes$jars" > "$folder/generate"
chmod +x "$folder/generate"
