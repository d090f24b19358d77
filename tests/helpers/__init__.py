"""What tests share: services, fakes, and questions to this machine. No test lives here."""
