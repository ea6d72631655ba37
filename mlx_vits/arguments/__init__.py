"""Options of the command lines: how they are declared, those that commands share, a fine-tune's."""
