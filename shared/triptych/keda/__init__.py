"""The interface of KEDA's external scalers, generated from protos/triptych/keda."""
