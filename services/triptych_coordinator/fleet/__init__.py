"""The replicas of a stage: who is there, who takes a call, what becomes of one that fails."""
