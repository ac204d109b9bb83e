"""The servers behind `./dev`: PostgreSQL, Valkey and RabbitMQ from packages, and the processes that use them."""
