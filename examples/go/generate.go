// A client of Triptych: generate ADDRESS picture PROMPT FILE | cancel PROMPT | deadline PROMPT | wrong
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "triptych.example/v1"
)

//go:generate sh make_stubs.sh

const tries = 5

// each calls take for every event of a generation, until the last one or an error. A context that ends cancels the work.
func each(ctx context.Context, service pb.ImageGenerationServiceClient, asked *pb.GenerationParameters,
	take func(*pb.GenerateResponse)) error {
	events, err := service.Generate(ctx, &pb.GenerateRequest{Parameters: asked})
	if err != nil {
		return err
	}
	for {
		event, err := events.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		take(event)
	}
}

// picture writes a picture's file. A server that is away is asked again, with the seed that it had chosen: it is the
// same picture.
func picture(service pb.ImageGenerationServiceClient, asked *pb.GenerationParameters, out string) error {
	var made *pb.GeneratedImage
	for try := 1; ; try++ {
		err := each(context.Background(), service, asked, func(event *pb.GenerateResponse) {
			switch event := event.Event.(type) {
			case *pb.GenerateResponse_Queued:
				fmt.Printf("number %d in the queue\n", event.Queued.Position)
			case *pb.GenerateResponse_Accepted:
				asked.Seeds = event.Accepted.Parameters.Seeds
			case *pb.GenerateResponse_StepCompleted:
				fmt.Printf("step %d of %d\n", event.StepCompleted.Step, event.StepCompleted.NumSteps)
			case *pb.GenerateResponse_Image:
				made = event.Image
			}
		})
		if status.Code(err) == codes.Unavailable && try < tries {
			fmt.Printf("again with seed %s\n", seedOf(asked))
			time.Sleep(pause(err))
			continue
		}
		if err != nil {
			return err
		}
		fmt.Printf("seed %d\n", made.Seed)
		return os.WriteFile(out, made.Png, 0o666)
	}
}

func seedOf(asked *pb.GenerationParameters) string {
	if len(asked.Seeds) == 0 {
		return "of the server's choice"
	}
	return fmt.Sprint(asked.Seeds[0])
}

// pause is how long the server says to wait, or a tenth of a second.
func pause(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.RetryDelay.AsDuration()
		}
	}
	return 100 * time.Millisecond
}

// show prints the code, and what is wrong with which field.
func show(err error) {
	fmt.Println(code.Code(status.Code(err)))
	for _, detail := range status.Convert(err).Details() {
		if wrong, ok := detail.(*errdetails.BadRequest); ok {
			for _, field := range wrong.FieldViolations {
				fmt.Printf("%s: %s\n", field.Field, field.Description)
			}
		}
	}
}

func run(service pb.ImageGenerationServiceClient, command string, words []string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	nothing := func(*pb.GenerateResponse) {}
	switch command {
	case "picture":
		asked := &pb.GenerationParameters{Prompts: words[:1], NumInferenceSteps: proto.Int32(3)}
		return picture(service, asked, words[1])
	case "cancel":
		asked := &pb.GenerationParameters{Prompts: words, NumInferenceSteps: proto.Int32(50)}
		return each(ctx, service, asked, func(event *pb.GenerateResponse) {
			if event.GetStepCompleted() != nil {
				cancel()
			}
		})
	case "deadline":
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		return each(ctx, service, &pb.GenerationParameters{Prompts: words}, nothing)
	case "wrong":
		return each(ctx, service, &pb.GenerationParameters{Height: proto.Int32(3)}, nothing)
	}
	return fmt.Errorf("there is no command %q", command)
}

func main() {
	if len(os.Args) < 3 {
		os.Exit(2)
	}
	size := grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64 << 20))
	connection, err := grpc.Dial(os.Args[1], grpc.WithInsecure(), size)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer connection.Close()
	if err := run(pb.NewImageGenerationServiceClient(connection), os.Args[2], os.Args[3:]); err != nil {
		show(err)
	}
}
