"""Flow-GRPO under ``accelerate launch train_flow_grpo.py [--config F] [key.sub=value ...]``."""

from difalign.cli.train_flow_grpo import main

if __name__ == "__main__":
    main()
