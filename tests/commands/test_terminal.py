"What commands say: a line for people stays one line where no terminal shows it."

from cv_pipeline.commands.terminal import notes, say


def test_a_pipe_or_file_gets_a_message_whole(capsys):
    path = "/data" + "/hall 7" * 40 + "/gate.mp4"
    notes([f"{path} is cut off"])
    assert capsys.readouterr().err == f"note: {path} is cut off\n"


def test_a_message_of_several_lines_keeps_them(capsys):
    say("first\nsecond")
    assert capsys.readouterr().err == "first\nsecond\n"
