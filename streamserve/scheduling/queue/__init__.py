"""Who waits and whose turn it is: admission, bounds of the queue, tenants and their limits, order, deadlines."""
