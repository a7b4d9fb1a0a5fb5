"""One file for each way in which trainers ask for rewards: the body they send, how it is read, and the body they expect."""
