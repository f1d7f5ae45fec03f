# Makes the stubs in v1; `go generate` calls it.
set -e
protos=${TRIPTYCH_PROTOS:-../../protos}
# What the service that clients call imports.
names="tensor model lora output_format editing sampling guidance generation_parameters image_generation"
files=""
options="module=triptych.example"
for name in $names; do
  files="$files triptych/v1/$name.proto"
  options="$options,Mtriptych/v1/$name.proto=triptych.example/v1"
done
# shellcheck disable=SC2086 # several words
protoc -I "$protos" --go_out="$options:." --go-grpc_out="$options:." $files
