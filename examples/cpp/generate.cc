// A client of Triptych: generate ADDRESS picture PROMPT FILE | cancel PROMPT | deadline PROMPT | wrong
#include <chrono>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>

#include <grpcpp/grpcpp.h>

#include "errors.pb.h"
#include "triptych/v1/image_generation.grpc.pb.h"

using namespace triptych::v1;

// Says the code, and what is wrong with which field.
void Show(const grpc::Status& status) {
  static const char* const names[] = {"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED"};
  const int code = status.error_code();
  std::cout << (code < 5 ? names[code] : std::to_string(code)) << "\n";
  google::rpc::Status details;
  details.ParseFromString(status.error_details());
  for (const auto& detail : details.details()) {
    google::rpc::BadRequest wrong;
    if (!detail.UnpackTo(&wrong)) continue;
    for (const auto& field : wrong.field_violations())
      std::cout << field.field() << ": " << field.description() << "\n";
  }
}

// How long the server says to wait, or a tenth of a second.
std::chrono::milliseconds Pause(const grpc::Status& status) {
  google::rpc::Status details;
  details.ParseFromString(status.error_details());
  google::rpc::RetryInfo info;
  for (const auto& detail : details.details())
    if (detail.UnpackTo(&info))
      return std::chrono::milliseconds(info.retry_delay().seconds() * 1000 + info.retry_delay().nanos() / 1000000);
  return std::chrono::milliseconds(100);
}

// Writes a picture's file. A server that is away is asked again, with the seed that it had chosen: it is the same
// picture.
grpc::Status Picture(ImageGenerationService::Stub& service, GenerateRequest request, const std::string& out) {
  grpc::Status status;
  for (int tries = 5; tries > 0; --tries) {
    grpc::ClientContext context;
    auto events = service.Generate(&context, request);
    GenerateResponse event;
    std::string file, seed;
    while (events->Read(&event)) {
      if (event.has_queued()) std::cout << "number " << event.queued().position() << " in the queue\n";
      if (event.has_accepted()) *request.mutable_parameters()->mutable_seeds() = event.accepted().parameters().seeds();
      if (event.has_step_completed())
        std::cout << "step " << event.step_completed().step() << " of " << event.step_completed().num_steps() << "\n";
      if (event.has_image()) {
        file = event.image().png();
        seed = std::to_string(event.image().seed());
      }
    }
    status = events->Finish();
    if (status.ok()) {
      std::ofstream(out, std::ios::binary) << file;
      std::cout << "seed " << seed << "\n";
    }
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return status;
    const auto& seeds = request.parameters().seeds();
    std::cout << "again with seed " << (seeds.empty() ? "of the server's choice" : std::to_string(seeds[0])) << "\n";
    std::this_thread::sleep_for(Pause(status));
  }
  return status;
}

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::string command = argv[2];
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(64 << 20);
  const auto credentials = grpc::InsecureChannelCredentials();
  auto service = ImageGenerationService::NewStub(grpc::CreateCustomChannel(argv[1], credentials, arguments));

  GenerateRequest request;
  auto& parameters = *request.mutable_parameters();
  if (argc > 3) parameters.add_prompts(argv[3]);
  grpc::Status status;
  if (command == "picture") {
    parameters.set_num_inference_steps(3);
    status = Picture(*service, request, argv[4]);
  } else {
    grpc::ClientContext context;
    if (command == "cancel") parameters.set_num_inference_steps(50);
    if (command == "wrong") parameters.set_height(3);
    if (command == "deadline") context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
    auto events = service->Generate(&context, request);
    GenerateResponse event;
    while (events->Read(&event))
      if (command == "cancel" && event.has_step_completed()) context.TryCancel();
    status = events->Finish();
  }
  if (!status.ok()) Show(status);
}
