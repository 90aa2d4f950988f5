"""Questions put to levels of rising cost: who answers, what it costs, and answers that are kept."""
