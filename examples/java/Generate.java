// A client of Triptych: Generate ADDRESS picture PROMPT FILE | cancel PROMPT | deadline PROMPT | wrong
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import google.rpc.Errors;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.NettyChannelBuilder;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Iterator;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.TimeUnit;
import triptych.v1.GenerationParametersOuterClass.GenerationParameters;
import triptych.v1.ImageGeneration.GenerateRequest;
import triptych.v1.ImageGeneration.GenerateResponse;
import triptych.v1.ImageGeneration.GeneratedImage;
import triptych.v1.ImageGenerationServiceGrpc;
import triptych.v1.ImageGenerationServiceGrpc.ImageGenerationServiceBlockingStub;

public final class Generate {
  private static final int TRIES = 5;
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  private static Iterator<GenerateResponse> events(
      ImageGenerationServiceBlockingStub service, GenerationParameters.Builder asked) {
    return service.generate(GenerateRequest.newBuilder().setParameters(asked).build());
  }

  // Writes a picture's file. A server that is away is asked again, with the seed that it had chosen: it is the same
  // picture.
  private static void picture(
      ImageGenerationServiceBlockingStub service, GenerationParameters.Builder asked, Path out)
      throws IOException, InterruptedException {
    for (int attempt = 1; ; attempt++) {
      GeneratedImage made = null;
      try {
        Iterator<GenerateResponse> events = events(service, asked);
        while (events.hasNext()) {
          GenerateResponse event = events.next();
          switch (event.getEventCase()) {
            case QUEUED:
              System.out.printf("number %d in the queue%n", event.getQueued().getPosition());
              break;
            case ACCEPTED:
              asked.clearSeeds().addAllSeeds(event.getAccepted().getParameters().getSeedsList());
              break;
            case STEP_COMPLETED:
              System.out.printf(
                  "step %d of %d%n", event.getStepCompleted().getStep(), event.getStepCompleted().getNumSteps());
              break;
            case IMAGE:
              made = event.getImage();
              break;
            default:
          }
        }
      } catch (StatusRuntimeException error) {
        if (error.getStatus().getCode() != Status.Code.UNAVAILABLE || attempt == TRIES) throw error;
        System.out.println("again with seed "
            + (asked.getSeedsCount() > 0 ? Long.toUnsignedString(asked.getSeeds(0)) : "of the server's choice"));
        Thread.sleep(pause(error));
        continue;
      }
      Files.write(out, made.getPng().toByteArray());
      System.out.println("seed " + Long.toUnsignedString(made.getSeed()));
      return;
    }
  }

  // How many milliseconds the server says to wait, or a tenth of a second.
  private static long pause(StatusRuntimeException error) {
    return detail(error, Errors.RetryInfo.class)
        .map(info -> info.getRetryDelay().getSeconds() * 1000 + info.getRetryDelay().getNanos() / 1_000_000)
        .orElse(100L);
  }

  private static <T extends Message> Optional<T> detail(StatusRuntimeException error, Class<T> kind) {
    byte[] status = error.getTrailers() == null ? null : error.getTrailers().get(DETAILS);
    try {
      for (Any one : status == null ? List.<Any>of() : Errors.Status.parseFrom(status).getDetailsList())
        if (one.is(kind)) return Optional.of(one.unpack(kind));
    } catch (InvalidProtocolBufferException broken) {
      return Optional.empty();
    }
    return Optional.empty();
  }

  private static void run(ImageGenerationServiceBlockingStub service, String command, String[] words)
      throws IOException, InterruptedException {
    GenerationParameters.Builder asked = GenerationParameters.newBuilder();
    if (words.length > 2) asked.addPrompts(words[2]);
    switch (command) {
      case "picture":
        picture(service, asked.setNumInferenceSteps(3), Path.of(words[3]));
        break;
      case "cancel":
        // What is called in a context is cancelled with it.
        Context.CancellableContext context = Context.current().withCancellation();
        context.run(() -> {
          Iterator<GenerateResponse> events = events(service, asked.setNumInferenceSteps(50));
          while (events.hasNext()) if (events.next().hasStepCompleted()) context.cancel(null);
        });
        break;
      case "deadline":
        events(service.withDeadlineAfter(50, TimeUnit.MILLISECONDS), asked).forEachRemaining(event -> {});
        break;
      case "wrong":
        events(service, asked.setHeight(3)).forEachRemaining(event -> {});
        break;
      default:
        throw new IllegalArgumentException("there is no command " + command);
    }
  }

  public static void main(String[] words) throws IOException, InterruptedException {
    ManagedChannel channel =
        NettyChannelBuilder.forTarget(words[0]).usePlaintext().maxInboundMessageSize(64 << 20).build();
    try {
      run(ImageGenerationServiceGrpc.newBlockingStub(channel), words[1], words);
    } catch (StatusRuntimeException error) {
      System.out.println(error.getStatus().getCode());
      detail(error, Errors.BadRequest.class).ifPresent(wrong -> wrong.getFieldViolationsList().forEach(
          field -> System.out.println(field.getField() + ": " + field.getDescription())));
    } finally {
      channel.shutdownNow();
    }
  }
}
